"""Filters of a distribution: functions of the logits alone, (B, V) -> (B, V), with one setting or one for each row."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llamita.sampling import top_p as top_p_rows
from llamita.sampling.finite import NEVER
from llamita.sampling.per_row import PerRow, column, is_given, listed, mapped
from llamita.sampling.token_masks import among

PART = 16  # every 16th logit is looked at before all are
COLD = 1e-8  # below this temperature quotients may be too large for fp32
OUT = np.float32(-math.inf)  # the logit of a removed token, for NumPy
TOP_H_TOKENS = 100  # top-h takes the entropy of this many most probable tokens (transformers' number)


class _Function(Protocol):
    def __call__(self, logits: Tensor, value: PerRow, /, *, min_tokens_to_keep: int = 1) -> Tensor: ...


class Filter:
    """A filter that leaves rows whose setting is off unchanged, bit for bit; if all are off it returns the same tensor.

    off: the setting that None means. is_on: whether a setting does anything. min_tokens_to_keep: beam search needs
    the end tokens and one more.
    """

    def __init__(self, function: _Function, *, off: float, is_on: Callable[[float], bool]) -> None:
        self.function, self.off, self.is_on = function, off, is_on
        functools.update_wrapper(self, function)

    def does_something(self, value: PerRow) -> bool:
        """Whether the setting is on in any row."""
        return is_given(value, self.is_on, off=self.off)

    def __call__(self, logits: Tensor, value: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
        """Filter logits (B, V)."""
        if isinstance(value, int | float):
            return self.function(logits, value, min_tokens_to_keep=min_tokens_to_keep) if self.is_on(value) else logits
        values = listed(value, len(logits), off=self.off)
        on = [row for row, one in enumerate(values) if self.is_on(one)]
        if not on:
            return logits
        if len(on) == len(values):
            return self.function(logits, value, min_tokens_to_keep=min_tokens_to_keep)
        rows = torch.tensor(on, device=logits.device)
        chosen = [values[row] for row in on]
        return logits.index_copy(0, rows, self.function(logits[rows], chosen, min_tokens_to_keep=min_tokens_to_keep))


def _filter(*, off: float, is_on: Callable[[float], bool]) -> Callable[[_Function], Filter]:
    return lambda function: Filter(function, off=off, is_on=is_on)


@_filter(off=1.0, is_on=lambda temperature: temperature not in (0, 1))
def scale(logits: Tensor, temperature: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it; 0 is left to the draw."""
    least = torch.finfo(logits.dtype).tiny
    divisor = column(mapped(temperature, lambda one: max(one, least)), logits)
    scaled = logits / divisor
    if not is_given(temperature, lambda one: one < COLD, off=1.0):
        return scaled
    top = logits.amax(-1, keepdim=True)
    reached = top / divisor
    is_out = top.isfinite() & (reached.isinf() | (reached < NEVER))
    return torch.where(is_out, (logits - top) / divisor, scaled)  # the same distribution, and none above 0


@_filter(off=0, is_on=lambda top_h: top_h > 0)
def keep_top_h(logits: Tensor, top_h: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep the most probable tokens whose entropy adds up to a share of the whole (arXiv:2509.02510)."""
    top, order = logits.topk(min(TOP_H_TOKENS, logits.shape[-1]))
    probabilities, entropy = _entropy(top)
    reached = (-probabilities * probabilities.log()).cumsum(-1)
    kept = reached <= entropy * column(top_h, logits)
    kept[:, 0] = True
    return logits.masked_fill(~torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept), -math.inf)


@_filter(off=0, is_on=lambda top_k: top_k > 0)
def keep_top_k(logits: Tensor, top_k: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep the k most probable tokens, and those that tie with the k-th; 0 keeps everything."""
    most = logits.shape[-1]
    if isinstance(top_k, int | float):
        count = min(max(int(top_k), min_tokens_to_keep), most)
        if _suits_numpy(logits):  # the same numbers, found in less time
            rows = logits.detach().numpy()
            return torch.from_numpy(np.where(rows < _least_of_most(rows, count), OUT, rows))
        return logits.masked_fill(logits < logits.topk(count).values[:, -1:], -math.inf)
    counts = [min(max(int(k), min_tokens_to_keep), most) for k in listed(top_k, len(logits))]
    likeliest = logits.topk(max(counts)).values  # (B, K)
    last = torch.tensor(counts, device=logits.device)[:, None] - 1
    return logits.masked_fill(logits < likeliest.gather(-1, last), -math.inf)


@_filter(off=1.0, is_on=lambda top_p: top_p < 1)
def keep_top_p(logits: Tensor, top_p: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep the smallest set of most probable tokens whose probability reaches p (arXiv:1904.09751).

    Among equal tokens at the border the sort decides; it is ascending, as in transformers, so that the choice is too.
    """
    rest = column(mapped(top_p, lambda p: 1 - p), logits)
    if _suits_numpy(logits) and (kept := top_p_rows.keep_among_few(logits, rest, min_tokens_to_keep)) is not None:
        return kept
    look = top_p_rows.least_logit if _suits_numpy(logits) else top_p_rows.least_of_top
    if (least := look(logits, rest, min_tokens_to_keep)) is not None:
        if _suits_numpy(logits):
            rows = logits.detach().numpy()
            return torch.from_numpy(np.where(rows < least.numpy(), OUT, rows))
        return logits.masked_fill(logits < least, -math.inf)
    ascending, order = logits.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= rest
    # The most probable token is safe without this: its sum is the whole mass, which is above any such rest.
    if min_tokens_to_keep > 1 or not (isinstance(rest, float) and rest < 0.999):
        removed[..., -min_tokens_to_keep:] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def keep_top_k_and_p(logits: Tensor, top_k: int, top_p: float) -> Tensor | None:
    """Apply top-k and then top-p to one row (1, V), at the cost of one filter; None where both must run in turn."""
    most = logits.shape[-1]
    if not _suits_numpy(logits) or top_k >= most or top_k > top_p_rows.TOKENS:
        return None
    row = logits.detach().numpy()[0]
    last = _least_of_most(row[None], top_k)[0, 0]
    return top_p_rows.cut(row, row[row >= last], 1 - top_p, min_tokens_to_keep=1)


@_filter(off=0, is_on=lambda min_p: min_p > 0)
def keep_min_p(logits: Tensor, min_p: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep tokens at least min_p times as probable as the most probable one (arXiv:2407.01082)."""
    probabilities = logits.softmax(-1)
    removed = probabilities < column(min_p, logits) * probabilities.amax(-1, keepdim=True)
    if min_tokens_to_keep == 1:  # the most probable token is never below its own share
        return logits.masked_fill(removed, -math.inf)
    likeliest = probabilities.topk(min(min_tokens_to_keep, logits.shape[-1])).indices
    return logits.masked_fill(removed.scatter(-1, likeliest, False), -math.inf)


@_filter(off=1.0, is_on=lambda typical_p: 0 < typical_p < 1)
def keep_typical(logits: Tensor, typical_p: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep the tokens whose surprise is nearest to the expected one, until their mass reaches p (arXiv:2202.00666)."""
    normalized = logits.log_softmax(-1)
    expected = -(normalized * normalized.exp()).nansum(-1, keepdim=True)
    distance, order = (-normalized - expected).abs().sort()
    mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (mass < column(typical_p, logits)).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    removed = distance > distance.gather(-1, last)
    removed[..., :min_tokens_to_keep] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


@_filter(off=0, is_on=lambda epsilon: 0 < epsilon < 1)
def cut_epsilon(logits: Tensor, epsilon: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Remove tokens less likely than epsilon (arXiv:2210.15191)."""
    removed = logits.softmax(-1) < column(epsilon, logits)
    return logits.masked_fill(removed & _is_behind(logits, min_tokens_to_keep), -math.inf)


@_filter(off=0, is_on=lambda epsilon: 0 < epsilon < 1)
def cut_eta(logits: Tensor, epsilon: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Remove tokens less likely than min(epsilon, sqrt(epsilon) * exp(-entropy)) (arXiv:2210.15191)."""
    _, entropy = _entropy(logits)
    least = torch.tensor(listed(epsilon, len(logits)), dtype=logits.dtype, device=logits.device)[:, None]
    removed = logits.softmax(-1) < torch.min(least, least.sqrt() * (-entropy).exp())
    return logits.masked_fill(removed & _is_behind(logits, min_tokens_to_keep), -math.inf)


def exclude_top_choices(
    logits: Tensor,
    probability: PerRow,
    threshold: PerRow,
    *,
    protected: Tensor,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """XTC: with a probability, remove all tokens that reach the threshold except the least probable of them.

    As in text-generation-webui, where XTC comes from, a row that would lose a protected token (the end, a new line;
    ids, (P,)) stays as it is. One number is drawn for each row that is on, from its generator or the global one.
    """
    chances = listed(probability, len(logits))
    if not any(chance > 0 for chance in chances):
        return logits
    acts = torch.tensor(_lots(chances, generators), device=logits.device)[:, None]  # (B, 1)
    probabilities = logits.softmax(-1)
    top = probabilities >= column(threshold, logits)
    least = probabilities.masked_fill(~top, math.inf).argmin(-1, keepdim=True)
    removed = top.scatter(-1, least, False)
    acts = acts & ~(removed & among(protected, logits)).any(-1, keepdim=True)
    return logits.masked_fill(removed & acts, -math.inf)


def _suits_numpy(logits: Tensor) -> bool:
    return logits.is_cpu and logits.dtype == torch.float32


def _least_of_most(rows: np.ndarray, count: int) -> np.ndarray:
    """The last of the `count` largest of each row (B, V): (B, 1). Those of a part of a row are no larger."""
    part = rows[:, ::PART]
    if 2 * count > part.shape[1]:
        return np.partition(rows, rows.shape[1] - count)[:, -count, None]
    found = np.empty((len(rows), 1), dtype=rows.dtype)
    for number, (row, least) in enumerate(zip(rows, np.partition(part, part.shape[1] - count)[:, -count], strict=True)):
        left = row[(row >= least).nonzero()[0]]
        found[number] = np.partition(left, len(left) - count)[-count]
    return found


def _lots(chances: Sequence[float], generators: Sequence[torch.Generator] | None) -> list[bool]:
    if generators is None:
        drawn = torch.rand(len(chances), dtype=torch.float32, device="cpu").tolist()
        return [lot < chance for lot, chance in zip(drawn, chances, strict=True)]
    pairs = zip(chances, generators, strict=True)
    return [c > 0 and torch.rand((), dtype=torch.float32, generator=g, device=g.device).item() < c for c, g in pairs]


def _entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (B, V) and entropy (B, 1), in nats, rounded as torch.distributions.Categorical does."""
    normalized = logits - logits.logsumexp(-1, keepdim=True)
    probabilities = normalized.softmax(-1)
    finite = normalized.clamp(min=torch.finfo(logits.dtype).min)
    return probabilities, -(finite * probabilities).sum(-1, keepdim=True)


def _is_behind(logits: Tensor, count: int) -> Tensor:
    """Which tokens are less probable than the first `count`."""
    return logits < logits.topk(min(count, logits.shape[-1])).values[..., -1:]
