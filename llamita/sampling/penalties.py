"""Penalties and biases of tokens that occur in the text so far, (B, V) -> (B, V).

Texts are ids (B, T) in which NO_TOKEN stands where a row has none; a row ends in the last column.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.per_row import PerRow, column, listed, mapped
from llamita.sampling.token_masks import among


def penalise_repetition(logits: Tensor, text: Tensor, penalty: PerRow) -> Tensor:
    """Divide positive logits of tokens in the text by the penalty, multiply negative ones (arXiv:1909.05858)."""
    least = torch.finfo(logits.dtype).tiny
    factor = column(mapped(penalty, lambda one: max(one, least)), logits)
    penalised = torch.where(logits < 0, logits * factor, logits / factor)
    return torch.where(_counted(text, logits) > 0, penalised, logits)


def favour_prompt(logits: Tensor, prompt: Tensor, penalty: PerRow) -> Tensor:
    """The repetition penalty's opposite: above 1 it raises tokens of the prompt (against hallucination)."""
    return penalise_repetition(logits, prompt, mapped(penalty, lambda one: 1 / one))


def penalise_written(logits: Tensor, continuation: Tensor, *, presence: PerRow, frequency: PerRow) -> Tensor:
    """OpenAI's penalties: logit - count * frequency - (count > 0) * presence.

    The counts are those of the written tokens alone; the prompt does not count.
    """
    counts = _counted(continuation, logits)
    return logits - counts * column(frequency, logits) - (counts > 0).to(logits) * column(presence, logits)


def ban_repeats(logits: Tensor, text: Tensor, source: Tensor, size: PerRow) -> Tensor:
    """Remove tokens that would complete, at the end of the text, an n-gram of `source` (B, S); size 0 removes none."""
    sizes = [int(one) for one in listed(size, len(logits))]
    for n in sorted(set(sizes) - {0}):
        removed = _completions(logits, text, source, n)
        if n != min(sizes) or n != max(sizes):
            removed = removed & torch.tensor([one == n for one in sizes], device=logits.device)[:, None]
        logits = logits.masked_fill(removed, -math.inf)
    return logits


def add_bias(logits: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Add the values (N,) to the logits of the tokens (N,): OpenAI's logit_bias."""
    return logits.index_add(1, tokens, values.to(logits).expand(len(logits), -1))


def urge_end(logits: Tensor, eos_token_ids: Tensor, *, excess: Sequence[int], factor: float) -> Tensor:
    """Raise the logits of the end tokens by |logit| * (factor ** excess - 1), in rows that exceed a length.

    At most to the largest number of the dtype: an infinite logit would leave no distribution.
    """
    if not any(count > 0 for count in excess):
        return logits
    powers = [_power(factor, count) - 1 if count > 0 else 0.0 for count in excess]
    gains = torch.tensor(powers, dtype=torch.float64, device="cpu")
    largest = torch.finfo(logits.dtype).max
    raised = (logits + logits.abs() * gains.clamp(max=largest).to(logits)[:, None]).clamp(max=largest)
    is_raised = among(eos_token_ids, logits) & logits.isfinite() & (gains != 0).to(logits.device)[:, None]
    return torch.where(is_raised, raised, logits)


class SequenceBias:
    """A bias for the last token of each sequence, wherever the text ends in the tokens before it.

    biases: {(ids): bias}, or transformers' [[ids, bias], ...]. Sequences of one length are matched together.
    """

    def __init__(
        self,
        biases: Mapping[tuple[int, ...], float] | Sequence[Sequence],
        device: torch.device | str = "cpu",
    ) -> None:
        pairs = biases.items() if isinstance(biases, Mapping) else [(tuple(ids), bias) for ids, bias in biases]
        table = {_sequence(ids): bias_of(bias, ids) for ids, bias in dict(pairs).items()}
        self._highest = max((max(ids) for ids in table), default=0)
        lengths = sorted({len(ids) for ids in table}, key=lambda length: (length > 1, _position(table, length)))
        self._groups = [_group({i: b for i, b in table.items() if len(i) == length}, device) for length in lengths]

    @classmethod
    def against(
        cls, words: Sequence[Sequence[int]], eos_token_ids: Sequence[int], device: torch.device | str = "cpu"
    ) -> "SequenceBias":
        """Forbids the words; an end token alone is never one of them."""
        return cls({tuple(w): -math.inf for w in words if list(w) not in [[eos] for eos in eos_token_ids]}, device)

    def __call__(self, logits: Tensor, text: Tensor) -> Tensor:
        """Add the biases to logits (B, V) for a text (B, T); raises UsageError for ids outside the vocabulary."""
        if self._highest >= logits.shape[1]:
            raise UsageError(f"token {self._highest} is biased, but the vocabulary has {logits.shape[1]} tokens")
        total = torch.zeros_like(logits)
        for beginnings, ends, biases in self._groups:
            length = beginnings.shape[1]
            if length <= text.shape[1]:
                fits = (text[:, None, text.shape[1] - length :] == beginnings).all(-1)  # (B, sequences)
                total.index_add_(1, ends, torch.where(fits, biases, 0.0).to(total))
        return logits + total


def bias_of(value: float, tokens: object) -> float:
    """A bias as a number that fp32 holds; minus infinity forbids. Raises UsageError for what is no number."""
    if not isinstance(value, int | float) or value != value:
        raise UsageError(f"the bias of {tokens!r} is {value!r}: give a number, or minus infinity to forbid it")
    largest = torch.finfo(torch.float32).max
    return value if value == -math.inf else float(min(max(value, -largest), largest))


def _group(table: Mapping[tuple[int, ...], float], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of one length: their beginnings (N, length - 1), last tokens (N,) and biases (N,)."""
    ids = torch.tensor(list(table), device=device)
    return ids[:, :-1], ids[:, -1], torch.tensor(list(table.values()), dtype=torch.float32, device=device)


def _position(table: Mapping[tuple[int, ...], float], length: int) -> int:
    return next(index for index, ids in enumerate(table) if len(ids) == length)


def _sequence(ids: Sequence[int]) -> tuple[int, ...]:
    if not ids or not all(isinstance(one, int) and 0 <= one < 2**63 for one in ids):
        raise UsageError(f"{ids!r} is no sequence of tokens: give one id or more, each 0 or above")
    return tuple(ids)


def _counted(text: Tensor, logits: Tensor) -> Tensor:
    """How often each token stands in the text: (B, T) -> (B, V) in the logits' dtype."""
    rows, vocabulary = logits.shape
    counts = logits.new_zeros(rows, vocabulary + 1)  # the last column takes what is no token of the vocabulary
    index = torch.where((text < 0) | (text > vocabulary), vocabulary, text)
    return counts.scatter_add_(1, index, torch.ones_like(index, dtype=logits.dtype))[:, :vocabulary]


def _completions(logits: Tensor, text: Tensor, source: Tensor, size: int) -> Tensor:
    """Which tokens (B, V), after the last size - 1 tokens of the text, complete an n-gram of the source."""
    rows, vocabulary = logits.shape
    removed = logits.new_zeros(rows, vocabulary + 1, dtype=torch.bool)
    if source.shape[1] >= size and text.shape[1] >= size - 1:
        windows = source.unfold(1, size, 1)  # (B, W, n)
        ending = text[:, text.shape[1] - (size - 1) :]
        follows = windows[..., -1]
        fits = (windows[..., :-1] == ending[:, None]).all(-1) & (follows >= 0) & (follows < vocabulary)
        removed.scatter_(1, torch.where(fits, follows, vocabulary), True)
    return removed[:, :vocabulary]


def _power(factor: float, exponent: int) -> float:
    try:
        return factor**exponent
    except OverflowError:
        return math.inf
