"""The table of logits processors, in the order in which they are applied."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llamita.sampling import batch_processors as prepared
from llamita.sampling import filters, token_masks
from llamita.sampling.batch_processors import BatchSettings
from llamita.sampling.filters import Filter
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.params import SamplingParams, ids_of
from llamita.sampling.per_row import EachRow, is_given


class ProcessorSpec(NamedTuple):
    """One logits processor: its name, whether settings ask for it, and the function that prepares it.

    tables: the fields that may be an EachRow; rows that differ in one are prepared and done apart. asked_by: the fields
    of which one is not its default where settings ask for it; that of its name, if none are listed.
    """

    name: str
    is_on: Callable[[SamplingParams], bool]
    prepare: Callable[[BatchSettings], LogitsProcessor]
    tables: tuple[str, ...] = ()
    asked_by: tuple[str, ...] = ()

    def processors(self, batch: BatchSettings) -> list[LogitsProcessor]:
        """The processors of a batch: none, one, or one for each group of rows with equal tables."""
        if not any(isinstance(getattr(batch.settings, name), EachRow) for name in self.tables):
            return [self.prepare(batch)] if self.is_on(batch.settings) else []
        groups = batch.groups(self.tables)
        parts = [(group, batch.alike(group, self.tables)) for group in groups]
        on = [(group, self.prepare(part)) for group, part in parts if self.is_on(part.settings)]
        return [process if len(groups) == 1 else _apart(process, group, batch.device) for group, process in on]


def _apart(process: LogitsProcessor, rows: Sequence[int], device: torch.device | str) -> LogitsProcessor:
    """A processor for some rows of the batch."""
    index = torch.tensor(rows, device=device)
    return lambda logits, history: logits.index_copy(0, index, process(logits[index], history.select(rows)))


def _filter(name: str, function: Filter) -> ProcessorSpec:
    """The spec of a filter, which reads only the logits."""

    def prepare(rows: BatchSettings) -> LogitsProcessor:
        value = getattr(rows.settings, name)
        # Beams need one token more than those that end them, and two at least.
        least = max(len(ids_of(rows.settings.eos_token_id)) + 1, 2) if rows.settings.num_beams > 1 else 1
        return lambda logits, _: function(logits, value, min_tokens_to_keep=least)

    return ProcessorSpec(
        name, lambda s: s.do_sample and function.does_something(getattr(s, name)), prepare, ("eos_token_id",)
    )


def with_top_k_and_p(
    processors: list[tuple[str, LogitsProcessor]], rows: BatchSettings
) -> list[tuple[str, LogitsProcessor]]:
    """The processors by their names; in one row top-k and top-p, if both are there, become one, which costs half."""
    names, k, p = [name for name, _ in processors], rows.settings.top_k, rows.settings.top_p
    if (
        rows.count > 1
        or not {"top_k", "top_p"} <= set(names)
        or not isinstance(k, int)
        or not isinstance(p, int | float)
    ):
        return processors
    at = names.index("top_k")
    (_, first), (_, then) = processors[at : at + 2]

    def both(logits: Tensor, history: History) -> Tensor:
        kept = filters.keep_top_k_and_p(logits, k, p)
        return then(first(logits, history), history) if kept is None else kept

    return [*processors[:at], ("top_k", both), *processors[at + 2 :]]


def _has(name: str, *, neutral: float = 0) -> Callable[[SamplingParams], bool]:
    """Whether a number is other than the neutral one, in any row."""
    return lambda s: is_given(getattr(s, name), lambda one: one != neutral, off=neutral)


def _has_end(name: str) -> Callable[[SamplingParams], bool]:
    is_given = _has(name)
    return lambda s: is_given(s) and bool(ids_of(s.eos_token_id))


# The order is transformers' (4.x and 5.x), from its `_get_logits_processor`; ours are marked.
PROCESSORS: tuple[ProcessorSpec, ...] = (
    ProcessorSpec("sequence_bias", lambda s: bool(s.sequence_bias), prepared.sequence_bias, ("sequence_bias",)),
    ProcessorSpec("logit_bias", lambda s: bool(s.logit_bias), prepared.logit_bias, ("logit_bias",)),  # ours
    ProcessorSpec(
        "encoder_repetition_penalty", _has("encoder_repetition_penalty", neutral=1), prepared.encoder_repetition
    ),
    ProcessorSpec("repetition_penalty", _has("repetition_penalty", neutral=1), prepared.repetition),
    ProcessorSpec(  # ours
        "presence_and_frequency",
        lambda s: _has("presence_penalty")(s) or _has("frequency_penalty")(s),
        prepared.presence_and_frequency,
        asked_by=("presence_penalty", "frequency_penalty"),
    ),
    ProcessorSpec(  # ours
        "dry", _has("dry_multiplier"), prepared.dry, ("dry_sequence_breakers",), asked_by=("dry_multiplier",)
    ),
    ProcessorSpec("no_repeat_ngram_size", _has("no_repeat_ngram_size"), prepared.no_repeat),
    ProcessorSpec("encoder_no_repeat_ngram_size", _has("encoder_no_repeat_ngram_size"), prepared.encoder_no_repeat),
    ProcessorSpec(
        "bad_words_ids", lambda s: bool(s.bad_words_ids), prepared.bad_words, ("bad_words_ids", "eos_token_id")
    ),
    ProcessorSpec("min_length", _has_end("min_length"), prepared.min_length, ("eos_token_id",)),
    ProcessorSpec("min_new_tokens", _has_end("min_new_tokens"), prepared.min_new_tokens, ("eos_token_id",)),
    ProcessorSpec("prefix_allowed_tokens_fn", lambda s: s.prefix_allowed_tokens_fn is not None, prepared.prefix),
    ProcessorSpec(
        "forced_bos_token_id",
        lambda s: bool(ids_of(s.forced_bos_token_id)),
        prepared.forced_bos,
        ("forced_bos_token_id",),
    ),
    ProcessorSpec(
        "forced_eos_token_id",
        lambda s: bool(ids_of(s.forced_eos_token_id)),
        prepared.forced_eos,
        ("forced_eos_token_id",),
    ),
    ProcessorSpec(
        "remove_invalid_values",
        lambda s: bool(s.remove_invalid_values),
        lambda _: lambda logits, _: token_masks.replace_invalid(logits),
        ("remove_invalid_values",),
    ),
    ProcessorSpec(
        "exponential_decay_length_penalty",
        lambda s: s.exponential_decay_length_penalty is not None and bool(ids_of(s.eos_token_id)),
        prepared.exponential_decay,
        ("exponential_decay_length_penalty", "eos_token_id"),
    ),
    ProcessorSpec(
        "suppress_tokens", lambda s: bool(ids_of(s.suppress_tokens)), prepared.suppress, ("suppress_tokens",)
    ),
    ProcessorSpec(
        "begin_suppress_tokens",
        lambda s: bool(ids_of(s.begin_suppress_tokens)),
        prepared.begin_suppress,
        ("begin_suppress_tokens", "forced_bos_token_id"),
    ),
    ProcessorSpec("logits_processor", lambda s: bool(s.logits_processor), prepared.users_processors),
    _filter("temperature", filters.scale),
    _filter("top_h", filters.keep_top_h),
    _filter("top_k", filters.keep_top_k),
    _filter("top_p", filters.keep_top_p),
    _filter("min_p", filters.keep_min_p),
    _filter("typical_p", filters.keep_typical),
    _filter("epsilon_cutoff", filters.cut_epsilon),
    _filter("eta_cutoff", filters.cut_eta),
    ProcessorSpec(  # ours
        "xtc",
        lambda s: s.do_sample and _has("xtc_probability")(s),
        prepared.xtc,
        ("xtc_protected", "eos_token_id"),
        asked_by=("xtc_probability",),
    ),
    ProcessorSpec("mirostat", lambda s: s.do_sample and _has("mirostat")(s), prepared.mirostat),  # ours
    ProcessorSpec(
        "watermarking_config", lambda s: bool(s.watermarking_config), prepared.watermark, ("watermarking_config",)
    ),
    ProcessorSpec(
        "renormalize_logits",
        lambda s: bool(s.renormalize_logits),
        lambda _: lambda logits, _: logits.log_softmax(-1),
        ("renormalize_logits",),
    ),
)
ASKED_BY = [(spec, frozenset(spec.asked_by or (spec.name,))) for spec in PROCESSORS]


def asked_for(batch: BatchSettings) -> list[tuple[str, LogitsProcessor]]:
    """The processors that a batch asks for, by their names, in their order."""
    given = batch.settings.given.keys()
    specs = [spec for spec, fields in ASKED_BY if not fields.isdisjoint(given)]
    return [(spec.name, process) for spec in specs for process in spec.processors(batch)]
