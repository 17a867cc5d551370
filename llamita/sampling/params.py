"""Sampling parameters: transformers' flags by their names, and ours."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.kinds import KINDS, check_kind
from llamita.sampling.per_row import LARGEST, EachRow, PerRow, check, check_rows, check_whole, listed
from llamita.sampling.watermark import WatermarkingConfig

Tokens = int | Sequence[int] | EachRow | None
HFProcessor = Callable[[Tensor, Tensor], Tensor]  # (ids (B, T), logits (B, V)) -> logits, as transformers' processors

_ABOVE_0 = math.nextafter(0, 1)

# name: lowest, highest, and what to do.
RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0, math.inf, "give 0 or more, 0 is greedy"),
    "top_h": (0, 1, "give a share of the entropy from 0 to 1, 0 keeps all"),
    "top_k": (0, math.inf, "give a count of tokens, 0 keeps all"),
    "top_p": (0, 1, "give a share from 0 to 1, 1 keeps all"),
    "min_p": (0, 1, "give a share from 0 to 1, 0 keeps all"),
    "typical_p": (0, 1, "give a share from 0 to 1, 1 keeps all"),
    "epsilon_cutoff": (0, 1, "give a probability from 0 to 1, 0 keeps all"),
    "eta_cutoff": (0, 1, "give a probability from 0 to 1, 0 keeps all"),
    "repetition_penalty": (_ABOVE_0, math.inf, "give a factor above 0, 1 does nothing"),
    "encoder_repetition_penalty": (_ABOVE_0, math.inf, "give a factor above 0, 1 does nothing"),
    "presence_penalty": (-math.inf, math.inf, "give a number, 0 does nothing"),
    "frequency_penalty": (-math.inf, math.inf, "give a number, 0 does nothing"),
    "no_repeat_ngram_size": (0, math.inf, "give a count of tokens, 0 does nothing"),
    "encoder_no_repeat_ngram_size": (0, math.inf, "give a count of tokens, 0 does nothing"),
    "min_length": (0, math.inf, "give a count of tokens"),
    "min_new_tokens": (0, math.inf, "give a count of tokens"),
    "dry_multiplier": (0, math.inf, "give 0 or more, 0 does nothing"),
    "dry_base": (1, math.inf, "give 1 or more"),
    "dry_allowed_length": (0, math.inf, "give a count of tokens"),
    "dry_range": (0, math.inf, "give a count of tokens, 0 is the whole text"),
    "max_length": (1, math.inf, "give a count of tokens"),
    "xtc_probability": (0, 1, "give a probability from 0 to 1, 0 does nothing"),
    "xtc_threshold": (0, 1, "give a probability from 0 to 1"),
    "mirostat": (0, 2, "give 2 for mirostat 2, or 0 for none"),
    "mirostat_tau": (_ABOVE_0, math.inf, "give a number of bits above 0"),
    "mirostat_eta": (0, math.inf, "give a rate of 0 or more"),
}

EXTREME = 1e15
FACTORS = ("repetition_penalty", "encoder_repetition_penalty")
AMOUNTS = ("presence_penalty", "frequency_penalty", "dry_multiplier")
STRONG = (*FACTORS, *AMOUNTS, "sequence_bias", "logit_bias", "exponential_decay_length_penalty")
NUMBERS = tuple(RANGES)  # fields that take one number a row
WHOLE = (
    "top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "max_length",
    "dry_allowed_length", "dry_range", "mirostat",
)  # fmt: skip
TABLES = (  # fields that take an EachRow
    "xtc_protected", "dry_sequence_breakers", "sequence_bias", "logit_bias", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits", "watermarking_config",
)  # fmt: skip
SAMPLING = (
    "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc_probability",
    "mirostat",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How logits become the distribution of the next token; the defaults change nothing.

    A number may be one for all rows or a sequence with one a row, None being off. A list or table holds for all rows;
    EachRow((one, other, ...)) gives each row its own. The flags of sampling (temperature to mirostat) need do_sample.

    presence_penalty, frequency_penalty: OpenAI's, over what was written; repetition_penalty: over prompt and writing.
    logit_bias: {token: bias}. dry_*: see `dry`; breakers are sequences of ids (`dry.breakers_of` finds those of texts),
    the range counts tokens, 0 for all.
    xtc_*: see `filters.exclude_top_choices`; xtc_protected are ids that it leaves, with the end tokens. mirostat: 2
    for on. max_length and num_beams are needed by forced_eos_token_id and the filters' least number of tokens.
    Raises UsageError for a value outside its range, or of another kind.
    """

    do_sample: bool = False
    temperature: PerRow = 1.0
    top_h: PerRow = None
    top_k: PerRow = 0
    top_p: PerRow = 1.0
    min_p: PerRow = None
    typical_p: PerRow = 1.0
    epsilon_cutoff: PerRow = 0.0
    eta_cutoff: PerRow = 0.0
    xtc_probability: PerRow = 0.0
    xtc_threshold: PerRow = 0.1
    xtc_protected: Sequence[int] = ()
    mirostat: PerRow = 0
    mirostat_tau: PerRow = 5.0
    mirostat_eta: PerRow = 0.1

    repetition_penalty: PerRow = 1.0
    encoder_repetition_penalty: PerRow = 1.0
    presence_penalty: PerRow = 0.0
    frequency_penalty: PerRow = 0.0
    no_repeat_ngram_size: PerRow = 0
    encoder_no_repeat_ngram_size: PerRow = 0
    dry_multiplier: PerRow = 0.0
    dry_base: PerRow = 1.75
    dry_allowed_length: PerRow = 2
    dry_range: PerRow = 0
    dry_sequence_breakers: Sequence[Sequence[int]] | EachRow = ()

    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence] | EachRow | None = None
    logit_bias: Mapping[int, float] | EachRow | None = None
    bad_words_ids: Sequence[Sequence[int]] | EachRow | None = None
    suppress_tokens: Tokens = None
    begin_suppress_tokens: Tokens = None
    forced_bos_token_id: Tokens = None
    forced_eos_token_id: Tokens = None
    eos_token_id: Tokens = None
    min_length: PerRow = 0
    min_new_tokens: PerRow = None
    max_length: PerRow = None
    exponential_decay_length_penalty: tuple[int, float] | EachRow | None = None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    remove_invalid_values: bool | EachRow = False
    renormalize_logits: bool | EachRow = False
    watermarking_config: WatermarkingConfig | Mapping[str, Any] | EachRow | None = None
    logits_processor: Sequence[HFProcessor] = ()
    num_beams: int = 1

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if name in RANGES:
                low, high, remedy = RANGES[name]
                check(name, value, low=low, high=high, remedy=remedy)
            if name in WHOLE:
                check_whole(name, value)
            if name in KINDS:
                check_kind(name, value)
        if 1 in listed(self.mirostat, 1):
            raise UsageError("mirostat is 1: there is only version 2, give 2 or 0")

    @cached_property
    def given(self) -> dict[str, Any]:
        """The fields that are not their defaults, which change nothing; most fields of a request are."""
        return {name: value for name, value in vars(self).items() if value is not DEFAULTS.get(name)}

    @property
    def may_overflow(self) -> bool:
        """Whether penalties or biases may make logits so large that arithmetic on them leaves no numbers."""
        if self.given.keys().isdisjoint(STRONG):
            return False
        tables = [self.sequence_bias, self.logit_bias]
        each = [one for table in tables for one in (table if isinstance(table, EachRow) else [table])]
        values = [
            v for one in each for v in (one.values() if isinstance(one, Mapping) else [bias for _, bias in one or ()])
        ]
        numbers = [one for name in AMOUNTS for one in listed(getattr(self, name), 1, off=1.0)]
        factors = [one for name in FACTORS for one in listed(getattr(self, name), 1, off=1.0)]
        is_large = any(abs(one) > EXTREME for one in (*values, *numbers, *factors) if one != -math.inf)
        return is_large or min(factors) < 1 / EXTREME or self.exponential_decay_length_penalty is not None

    @classmethod
    def of(cls, flags: object, **others: Any) -> "SamplingParams":
        """From any object that has some of the fields as attributes, and others by name; None leaves a default."""
        given = {name: getattr(flags, name, None) for name in DEFAULTS} | others
        return cls(**{name: value for name, value in given.items() if value is not None})

    def check_rows(self, rows: int) -> None:
        """Raise UsageError where values are not one for each row."""
        for name, value in self.given.items():
            if name in NUMBERS or (name in TABLES and isinstance(value, EachRow)):
                check_rows(name, value, rows)

    def select(self, rows: Sequence[int]) -> "SamplingParams":
        """The settings of these rows, repeats allowed: [0, 0, 1, 1] is two beams of two prompts."""
        changes = {name: _selected(getattr(self, name), rows) for name in NUMBERS}
        tables = {name: getattr(self, name) for name in TABLES}
        changes |= {name: value.select(rows) for name, value in tables.items() if isinstance(value, EachRow)}
        return replace(self, **changes)


DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in fields(SamplingParams)}


def merge(rows: Sequence[SamplingParams]) -> SamplingParams:
    """One distribution for a batch, from one for each row; a row that does not sample gets temperature 0.

    Raises UsageError where rows differ in what only a whole batch has: processors, the prefix function, beams.
    """
    samples = any(row.do_sample for row in rows)
    rows = [row if row.do_sample == samples else _greedy(row) for row in rows]
    columns = {name: [getattr(row, name) for row in rows] for name in DEFAULTS}
    return SamplingParams(**{name: _merged(name, values) for name, values in columns.items()})


def _greedy(row: SamplingParams) -> SamplingParams:
    neutral = {name: DEFAULTS[name] for name in SAMPLING}
    return replace(row, **{**neutral, "temperature": 0.0, "do_sample": True})


def _merged(name: str, values: Sequence[Any]) -> Any:
    if all(value is values[0] or value == values[0] for value in values):
        return values[0]
    if name in NUMBERS:
        return values
    if name in TABLES:
        return EachRow(values)
    raise UsageError(f"{name} differs between the rows of one batch: give it once for all")


def _selected(value: PerRow, rows: Sequence[int]) -> PerRow:
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim else value
    return [value[row] for row in rows] if isinstance(value, Sequence) else value


def ids_of(tokens: Tokens) -> list[int]:
    """Ids as a list, whether one, several or none are given; transformers' -1 is none."""
    given = [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)
    return [min(token, LARGEST) for token in given if token >= 0]  # beyond the vocabulary one is as good as another
