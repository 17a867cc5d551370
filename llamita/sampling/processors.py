"""The table of logits processors, in the order in which they are applied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling import filters, penalties, token_masks
from llamita.sampling.dry import penalise_continuation
from llamita.sampling.filters import Filter
from llamita.sampling.finite import refuse
from llamita.sampling.history import History
from llamita.sampling.history import LogitsProcessor as Step
from llamita.sampling.mirostat import Mirostat, SurpriseLimit
from llamita.sampling.params import SamplingParams, Tokens
from llamita.sampling.per_row import LARGEST, EachRow, PerRow, is_given, listed
from llamita.sampling.watermark import Watermark, WatermarkingConfig


@dataclass(frozen=True)
class BatchSettings:
    """Some rows of a batch: their settings, their device, their random generators, and their states for mirostat."""

    settings: SamplingParams
    count: int
    device: torch.device | str
    generators: Sequence[torch.Generator] | None
    limits: Sequence[SurpriseLimit] | None = None

    def ids(self, tokens: Tokens) -> Tensor:
        """Token ids as a tensor (N,)."""
        return torch.tensor(_ids(tokens), dtype=torch.long, device=self.device)

    def alike(self, rows: Sequence[int], tables: Sequence[str]) -> "BatchSettings":
        """Some of these rows, which agree in the tables: an EachRow becomes its one value."""
        generators = None if self.generators is None else [self.generators[row] for row in rows]
        limits = None if self.limits is None else [self.limits[row] for row in rows]
        settings = self.settings.select(rows)
        each = {name: value for name in tables if isinstance(value := getattr(settings, name), EachRow)}
        settings = replace(settings, **{name: value[0] for name, value in each.items()})
        return BatchSettings(settings, len(rows), self.device, generators, limits)

    def groups(self, tables: Sequence[str]) -> list[list[int]]:
        """The rows, those together that agree in the tables."""
        each = [value for name in tables if isinstance(value := getattr(self.settings, name), EachRow)]
        groups: list[list[int]] = []
        for row in range(self.count):
            same = (g for g in groups if all(value[g[0]] == value[row] for value in each))
            group = next(same, None)
            if group is None:
                groups.append([row])
            else:
                group.append(row)
        return groups


class ProcessorSpec(NamedTuple):
    """One logits processor: its name, whether settings ask for it, and the function that prepares it.

    tables: the fields that may be an EachRow; rows that differ in one are prepared and done apart.
    """

    name: str
    is_on: Callable[[SamplingParams], bool]
    prepare: Callable[[BatchSettings], Step]
    tables: tuple[str, ...] = ()

    def steps(self, batch: BatchSettings) -> list[Step]:
        """The processors of a batch: none, one, or one for each group of rows with equal tables."""
        if not any(isinstance(getattr(batch.settings, name), EachRow) for name in self.tables):
            return [self.prepare(batch)] if self.is_on(batch.settings) else []
        groups = batch.groups(self.tables)
        parts = [(group, batch.alike(group, self.tables)) for group in groups]
        on = [(group, self.prepare(part)) for group, part in parts if self.is_on(part.settings)]
        return [step if len(groups) == 1 else _apart(step, group, batch.device) for group, step in on]


def _apart(step: Step, rows: Sequence[int], device: torch.device | str) -> Step:
    """A processor for some rows of the batch."""
    index = torch.tensor(rows, device=device)
    return lambda logits, history: logits.index_copy(0, index, step(logits[index], history.select(rows)))


def _sequence_bias(rows: BatchSettings) -> Step:
    bias = penalties.SequenceBias(_given(rows.settings.sequence_bias), rows.device)
    return lambda logits, history: bias(logits, history.tokens)


def _logit_bias(rows: BatchSettings) -> Step:
    table = {int(token): penalties.bias_of(value, token) for token, value in _given(rows.settings.logit_bias).items()}
    fitting = [min(max(token, -1), LARGEST) for token in table]
    tokens = torch.tensor(fitting, dtype=torch.int64, device=rows.device)
    values = torch.tensor(list(table.values()), dtype=torch.float32, device=rows.device)

    def step(logits: Tensor, _: History) -> Tensor:
        if not 0 <= min(fitting) <= max(fitting) < logits.shape[1]:
            raise UsageError(f"logit_bias names tokens outside the vocabulary of {logits.shape[1]}: leave them out")
        return penalties.add_bias(logits, tokens, values)

    return step


def _encoder_repetition(rows: BatchSettings) -> Step:
    penalty = _numbers(rows.settings.encoder_repetition_penalty, rows, off=1.0)
    return lambda logits, history: penalties.favour_prompt(logits, history.prompt, penalty)


def _repetition(rows: BatchSettings) -> Step:
    penalty = _numbers(rows.settings.repetition_penalty, rows, off=1.0)
    return lambda logits, history: penalties.penalise_repetition(logits, history.tokens, penalty)


def _presence_and_frequency(rows: BatchSettings) -> Step:
    presence = _numbers(rows.settings.presence_penalty, rows)
    frequency = _numbers(rows.settings.frequency_penalty, rows)
    return lambda logits, history: penalties.penalise_written(
        logits, history.continuation, presence=presence, frequency=frequency
    )


def _dry(rows: BatchSettings) -> Step:
    s = rows.settings
    penalise = partial(
        penalise_continuation,
        multiplier=_numbers(s.dry_multiplier, rows),
        base=s.dry_base,
        allowed_length=s.dry_allowed_length,
        length=_numbers(s.dry_range, rows),
        breakers=s.dry_sequence_breakers,
    )
    return lambda logits, history: penalise(logits, history.tokens)


def _no_repeat(rows: BatchSettings) -> Step:
    size = rows.settings.no_repeat_ngram_size
    return lambda logits, history: penalties.ban_repeats(logits, history.tokens, history.tokens, size)


def _encoder_no_repeat(rows: BatchSettings) -> Step:
    size = rows.settings.encoder_no_repeat_ngram_size
    return lambda logits, history: penalties.ban_repeats(logits, history.tokens, history.prompt, size)


def _bad_words(rows: BatchSettings) -> Step:
    words = penalties.SequenceBias.against(
        _given(rows.settings.bad_words_ids), _ids(rows.settings.eos_token_id), rows.device
    )
    return lambda logits, history: words(logits, history.tokens)


def _min_length(rows: BatchSettings) -> Step:
    ends, least = rows.ids(rows.settings.eos_token_id), listed(rows.settings.min_length, rows.count)
    return lambda logits, history: token_masks.ban(logits, ends, _below(history.lengths, least))


def _min_new_tokens(rows: BatchSettings) -> Step:
    ends, least = rows.ids(rows.settings.eos_token_id), listed(rows.settings.min_new_tokens, rows.count)
    return lambda logits, history: token_masks.ban(logits, ends, _below(history.written_counts, least))


def _prefix(rows: BatchSettings) -> Step:
    allowed, beams = _given(rows.settings.prefix_allowed_tokens_fn), rows.settings.num_beams
    return lambda logits, history: token_masks.allow(logits, history.input_ids, allowed, beams=beams)


def _forced_bos(rows: BatchSettings) -> Step:
    first = rows.ids(rows.settings.forced_bos_token_id)
    return lambda logits, history: token_masks.force(logits, first, [length == 1 for length in history.lengths])


def _forced_eos(rows: BatchSettings) -> Step:
    ends, limits = rows.ids(rows.settings.forced_eos_token_id), listed(rows.settings.max_length, rows.count)
    return lambda logits, history: token_masks.force(
        logits, ends, [length == limit - 1 for length, limit in zip(history.lengths, limits, strict=True)]
    )


def _exponential_decay(rows: BatchSettings) -> Step:
    start, factor = _given(rows.settings.exponential_decay_length_penalty)
    ends = rows.ids(rows.settings.eos_token_id)
    return lambda logits, history: penalties.urge_end(
        logits, ends, excess=[count - start for count in history.written_counts], factor=factor
    )


def _suppress(rows: BatchSettings) -> Step:
    tokens = rows.ids(rows.settings.suppress_tokens)
    return lambda logits, _: token_masks.ban(logits, tokens)


def _begin_suppress(rows: BatchSettings) -> Step:
    tokens, is_forced = rows.ids(rows.settings.begin_suppress_tokens), rows.settings.forced_bos_token_id is not None

    def step(logits: Tensor, history: History) -> Tensor:
        begin = 1 if is_forced and history.prompt_length <= 1 else 0  # 1: after a forced first token
        return token_masks.ban(logits, tokens, [count == begin for count in history.written_counts])

    return step


def _processors(rows: BatchSettings) -> Step:
    def step(logits: Tensor, history: History) -> Tensor:
        for processor in rows.settings.logits_processor:
            logits = processor(history.input_ids, logits)
        if bool(logits.isnan().any()):
            refuse()
        return logits

    return step


def _xtc(rows: BatchSettings) -> Step:
    s = rows.settings
    exclude = partial(
        filters.exclude_top_choices,
        probability=s.xtc_probability,
        threshold=s.xtc_threshold,
        protected=rows.ids([*s.xtc_protected, *_ids(s.eos_token_id)]),
        generators=rows.generators,
    )
    return lambda logits, _: exclude(logits)


def _mirostat(rows: BatchSettings) -> Step:
    s = rows.settings
    return Mirostat(
        rows.count, mode=s.mirostat, tau=s.mirostat_tau, eta=s.mirostat_eta, device=rows.device, limits=rows.limits
    )


def _watermark(rows: BatchSettings) -> Step:
    mark = Watermark(WatermarkingConfig.of(rows.settings.watermarking_config), rows.device)
    return lambda logits, history: mark(logits, history.tokens)


def _filter(name: str, function: Filter) -> ProcessorSpec:
    """The spec of a filter, which reads only the logits."""

    def prepare(rows: BatchSettings) -> Step:
        value = getattr(rows.settings, name)
        # Beams need one token more than those that end them, and two at least.
        least = max(len(_ids(rows.settings.eos_token_id)) + 1, 2) if rows.settings.num_beams > 1 else 1
        return lambda logits, _: function(logits, value, min_tokens_to_keep=least)

    return ProcessorSpec(
        name, lambda d: d.do_sample and function.does_something(getattr(d, name)), prepare, ("eos_token_id",)
    )


def with_top_k_and_p(steps: list[tuple[str, Step]], rows: BatchSettings) -> list[tuple[str, Step]]:
    """The steps by their names; in one row top-k and top-p, if both are among them, become one, which costs half."""
    names, k, p = [name for name, _ in steps], rows.settings.top_k, rows.settings.top_p
    if (
        rows.count > 1
        or not {"top_k", "top_p"} <= set(names)
        or not isinstance(k, int)
        or not isinstance(p, int | float)
    ):
        return steps
    at = names.index("top_k")
    (_, first), (_, then) = steps[at : at + 2]

    def both(logits: Tensor, history: History) -> Tensor:
        kept = filters.keep_top_k_and_p(logits, k, p)
        return then(first(logits, history), history) if kept is None else kept

    return [*steps[:at], ("top_k", both), *steps[at + 2 :]]


def _has(name: str, *, neutral: float = 0) -> Callable[[SamplingParams], bool]:
    """Whether a number is other than the neutral one, in any row."""
    return lambda d: is_given(getattr(d, name), lambda one: one != neutral, off=neutral)


def _has_end(name: str) -> Callable[[SamplingParams], bool]:
    is_given = _has(name)
    return lambda d: is_given(d) and bool(_ids(d.eos_token_id))


def _ids(tokens: Tokens) -> list[int]:
    """Ids as a list, whether one, several or none are given; transformers' -1 is none."""
    listed_ids = [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)
    return [
        min(token, LARGEST) for token in listed_ids if token >= 0
    ]  # beyond the vocabulary one is as good as another


def _numbers(value: PerRow, rows: BatchSettings, *, off: float = 0.0) -> PerRow:
    """A setting in which `off` stands for None."""
    return value if isinstance(value, int | float | Tensor) else listed(value, rows.count, off=off)


def _below(counts: Sequence[int], least: Sequence[float]) -> list[bool]:
    return [count < one for count, one in zip(counts, least, strict=True)]


def _given(value: Any) -> Any:
    """What a stage is only prepared for when it is there."""
    assert value is not None
    return value


# The order is transformers' (4.x and 5.x), from its `_get_logits_processor`; ours are marked.
PROCESSORS: tuple[ProcessorSpec, ...] = (
    ProcessorSpec("sequence_bias", lambda d: bool(d.sequence_bias), _sequence_bias, ("sequence_bias",)),
    ProcessorSpec("logit_bias", lambda d: bool(d.logit_bias), _logit_bias, ("logit_bias",)),  # ours
    ProcessorSpec("encoder_repetition_penalty", _has("encoder_repetition_penalty", neutral=1), _encoder_repetition),
    ProcessorSpec("repetition_penalty", _has("repetition_penalty", neutral=1), _repetition),
    ProcessorSpec(  # ours
        "presence_and_frequency",
        lambda d: _has("presence_penalty")(d) or _has("frequency_penalty")(d),
        _presence_and_frequency,
    ),
    ProcessorSpec("dry", _has("dry_multiplier"), _dry, ("dry_sequence_breakers",)),  # ours
    ProcessorSpec("no_repeat_ngram_size", _has("no_repeat_ngram_size"), _no_repeat),
    ProcessorSpec("encoder_no_repeat_ngram_size", _has("encoder_no_repeat_ngram_size"), _encoder_no_repeat),
    ProcessorSpec("bad_words_ids", lambda d: bool(d.bad_words_ids), _bad_words, ("bad_words_ids", "eos_token_id")),
    ProcessorSpec("min_length", _has_end("min_length"), _min_length, ("eos_token_id",)),
    ProcessorSpec("min_new_tokens", _has_end("min_new_tokens"), _min_new_tokens, ("eos_token_id",)),
    ProcessorSpec("prefix_allowed_tokens_fn", lambda d: d.prefix_allowed_tokens_fn is not None, _prefix),
    ProcessorSpec(
        "forced_bos_token_id", lambda d: bool(_ids(d.forced_bos_token_id)), _forced_bos, ("forced_bos_token_id",)
    ),
    ProcessorSpec(
        "forced_eos_token_id", lambda d: bool(_ids(d.forced_eos_token_id)), _forced_eos, ("forced_eos_token_id",)
    ),
    ProcessorSpec(
        "remove_invalid_values",
        lambda d: bool(d.remove_invalid_values),
        lambda _: lambda logits, _: token_masks.replace_invalid(logits),
        ("remove_invalid_values",),
    ),
    ProcessorSpec(
        "exponential_decay_length_penalty",
        lambda d: d.exponential_decay_length_penalty is not None and bool(_ids(d.eos_token_id)),
        _exponential_decay,
        ("exponential_decay_length_penalty", "eos_token_id"),
    ),
    ProcessorSpec("suppress_tokens", lambda d: bool(_ids(d.suppress_tokens)), _suppress, ("suppress_tokens",)),
    ProcessorSpec(
        "begin_suppress_tokens",
        lambda d: bool(_ids(d.begin_suppress_tokens)),
        _begin_suppress,
        ("begin_suppress_tokens", "forced_bos_token_id"),
    ),
    ProcessorSpec("logits_processor", lambda d: bool(d.logits_processor), _processors),
    _filter("temperature", filters.scale),
    _filter("top_h", filters.keep_top_h),
    _filter("top_k", filters.keep_top_k),
    _filter("top_p", filters.keep_top_p),
    _filter("min_p", filters.keep_min_p),
    _filter("typical_p", filters.keep_typical),
    _filter("epsilon_cutoff", filters.cut_epsilon),
    _filter("eta_cutoff", filters.cut_eta),
    ProcessorSpec(
        "xtc", lambda d: d.do_sample and _has("xtc_probability")(d), _xtc, ("xtc_protected", "eos_token_id")
    ),  # ours
    ProcessorSpec("mirostat", lambda d: d.do_sample and _has("mirostat")(d), _mirostat),  # ours
    ProcessorSpec("watermarking_config", lambda d: bool(d.watermarking_config), _watermark, ("watermarking_config",)),
    ProcessorSpec(
        "renormalize_logits",
        lambda d: bool(d.renormalize_logits),
        lambda _: lambda logits, _: logits.log_softmax(-1),
        ("renormalize_logits",),
    ),
)
