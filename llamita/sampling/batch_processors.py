"""Logits processors prepared for some rows of a batch: a function for each, of the settings of these rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling import filters, penalties, token_masks
from llamita.sampling.dry import penalise_continuation
from llamita.sampling.finite import refuse
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.mirostat import Mirostat, SurpriseLimit
from llamita.sampling.params import SamplingParams, Tokens, ids_of
from llamita.sampling.per_row import LARGEST, EachRow, PerRow, listed
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
        return torch.tensor(ids_of(tokens), dtype=torch.long, device=self.device)

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


def sequence_bias(rows: BatchSettings) -> LogitsProcessor:
    """A bias for the last token of each sequence that the text continues."""
    bias = penalties.SequenceBias(_given(rows.settings.sequence_bias), rows.device)
    return lambda logits, history: bias(logits, history.tokens)


def logit_bias(rows: BatchSettings) -> LogitsProcessor:
    """OpenAI's bias of single tokens. The process raises UsageError for a token outside the vocabulary."""
    table = {int(token): penalties.bias_of(value, token) for token, value in _given(rows.settings.logit_bias).items()}
    fitting = [min(max(token, -1), LARGEST) for token in table]
    tokens = torch.tensor(fitting, dtype=torch.int64, device=rows.device)
    values = torch.tensor(list(table.values()), dtype=torch.float32, device=rows.device)

    def process(logits: Tensor, _: History) -> Tensor:
        if not 0 <= min(fitting) <= max(fitting) < logits.shape[1]:
            raise UsageError(f"logit_bias names tokens outside the vocabulary of {logits.shape[1]}: leave them out")
        return penalties.add_bias(logits, tokens, values)

    return process


def encoder_repetition(rows: BatchSettings) -> LogitsProcessor:
    """The repetition penalty's opposite, over the prompt."""
    penalty = _numbers(rows.settings.encoder_repetition_penalty, rows, off=1.0)
    return lambda logits, history: penalties.favour_prompt(logits, history.prompt, penalty)


def repetition(rows: BatchSettings) -> LogitsProcessor:
    """The repetition penalty, over prompt and written tokens."""
    penalty = _numbers(rows.settings.repetition_penalty, rows, off=1.0)
    return lambda logits, history: penalties.penalise_repetition(logits, history.tokens, penalty)


def presence_and_frequency(rows: BatchSettings) -> LogitsProcessor:
    """OpenAI's penalties, over the written tokens."""
    presence = _numbers(rows.settings.presence_penalty, rows)
    frequency = _numbers(rows.settings.frequency_penalty, rows)
    return lambda logits, history: penalties.penalise_written(
        logits, history.continuation, presence=presence, frequency=frequency
    )


def dry(rows: BatchSettings) -> LogitsProcessor:
    """A penalty on continuing a repetition."""
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


def no_repeat(rows: BatchSettings) -> LogitsProcessor:
    """No n-gram twice in the text."""
    size = rows.settings.no_repeat_ngram_size
    return lambda logits, history: penalties.ban_repeats(logits, history.tokens, history.tokens, size)


def encoder_no_repeat(rows: BatchSettings) -> LogitsProcessor:
    """No n-gram of the prompt in what is written."""
    size = rows.settings.encoder_no_repeat_ngram_size
    return lambda logits, history: penalties.ban_repeats(logits, history.tokens, history.prompt, size)


def bad_words(rows: BatchSettings) -> LogitsProcessor:
    """Sequences that are never written."""
    words = penalties.SequenceBias.against(
        _given(rows.settings.bad_words_ids), ids_of(rows.settings.eos_token_id), rows.device
    )
    return lambda logits, history: words(logits, history.tokens)


def min_length(rows: BatchSettings) -> LogitsProcessor:
    """No end before a number of tokens, the prompt's included."""
    ends, least = rows.ids(rows.settings.eos_token_id), listed(rows.settings.min_length, rows.count)
    return lambda logits, history: token_masks.ban(logits, ends, _below(history.lengths, least))


def min_new_tokens(rows: BatchSettings) -> LogitsProcessor:
    """No end before a number of written tokens."""
    ends, least = rows.ids(rows.settings.eos_token_id), listed(rows.settings.min_new_tokens, rows.count)
    return lambda logits, history: token_masks.ban(logits, ends, _below(history.written_counts, least))


def prefix(rows: BatchSettings) -> LogitsProcessor:
    """The tokens that a function of the user allows."""
    allowed, beams = _given(rows.settings.prefix_allowed_tokens_fn), rows.settings.num_beams
    return lambda logits, history: token_masks.allow(logits, history.input_ids, allowed, beams=beams)


def forced_bos(rows: BatchSettings) -> LogitsProcessor:
    """The first token of a text."""
    first = rows.ids(rows.settings.forced_bos_token_id)
    return lambda logits, history: token_masks.force(logits, first, [length == 1 for length in history.lengths])


def forced_eos(rows: BatchSettings) -> LogitsProcessor:
    """The last token of a text that reaches its limit."""
    ends, limits = rows.ids(rows.settings.forced_eos_token_id), listed(rows.settings.max_length, rows.count)
    return lambda logits, history: token_masks.force(
        logits, ends, [length == limit - 1 for length, limit in zip(history.lengths, limits, strict=True)]
    )


def exponential_decay(rows: BatchSettings) -> LogitsProcessor:
    """End tokens, raised once a text exceeds a length."""
    start, factor = _given(rows.settings.exponential_decay_length_penalty)
    ends = rows.ids(rows.settings.eos_token_id)
    return lambda logits, history: penalties.urge_end(
        logits, ends, excess=[count - start for count in history.written_counts], factor=factor
    )


def suppress(rows: BatchSettings) -> LogitsProcessor:
    """Tokens that are never written."""
    tokens = rows.ids(rows.settings.suppress_tokens)
    return lambda logits, _: token_masks.ban(logits, tokens)


def begin_suppress(rows: BatchSettings) -> LogitsProcessor:
    """Tokens that are never written first."""
    tokens, is_forced = rows.ids(rows.settings.begin_suppress_tokens), rows.settings.forced_bos_token_id is not None

    def process(logits: Tensor, history: History) -> Tensor:
        begin = 1 if is_forced and history.prompt_length <= 1 else 0  # 1: after a forced first token
        return token_masks.ban(logits, tokens, [count == begin for count in history.written_counts])

    return process


def users_processors(rows: BatchSettings) -> LogitsProcessor:
    """The user's own processors, one after another; raises UsageError where they leave no numbers."""

    def process(logits: Tensor, history: History) -> Tensor:
        for processor in rows.settings.logits_processor:
            logits = processor(history.input_ids, logits)
        if bool(logits.isnan().any()):
            refuse()
        return logits

    return process


def xtc(rows: BatchSettings) -> LogitsProcessor:
    """XTC, which draws whether it excludes the top choices."""
    s = rows.settings
    exclude = partial(
        filters.exclude_top_choices,
        probability=s.xtc_probability,
        threshold=s.xtc_threshold,
        protected=rows.ids([*s.xtc_protected, *ids_of(s.eos_token_id)]),
        generators=rows.generators,
    )
    return lambda logits, _: exclude(logits)


def mirostat(rows: BatchSettings) -> LogitsProcessor:
    """A limit of surprise that follows the draws."""
    s = rows.settings
    return Mirostat(
        rows.count, mode=s.mirostat, tau=s.mirostat_tau, eta=s.mirostat_eta, device=rows.device, limits=rows.limits
    )


def watermark(rows: BatchSettings) -> LogitsProcessor:
    """A watermark in the choice of tokens."""
    mark = Watermark(WatermarkingConfig.of(rows.settings.watermarking_config), rows.device)
    return lambda logits, history: mark(logits, history.tokens)


def _numbers(value: PerRow, rows: BatchSettings, *, off: float = 0.0) -> PerRow:
    """A setting in which `off` stands for None."""
    return value if isinstance(value, int | float | Tensor) else listed(value, rows.count, off=off)


def _below(counts: Sequence[int], least: Sequence[float]) -> list[bool]:
    return [count < one for count, one in zip(counts, least, strict=True)]


def _given(value: Any) -> Any:
    """A setting without which the processor would not be prepared."""
    assert value is not None
    return value
