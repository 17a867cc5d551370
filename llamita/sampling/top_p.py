"""Which tokens top-p keeps, without a sort of the whole vocabulary where fewer tokens decide.

Must equal `filters.keep_top_p`'s sort of all. All functions give None where rounding or a tie would decide.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOKENS = 256  # it first looks at this many of the most probable tokens, and sorts all only if need be
SORTED_AT_ONCE = 4096  # tokens
PART = 16  # every 16th token is looked at before all are
FEW = 1 / 8  # of the vocabulary, up to which probable tokens are sorted apart from the others
DOUBT = 5e-5  # how much fp32 sums of probabilities may differ with their order
OUT = np.float32(-math.inf)  # the logit of a removed token, for NumPy


def least_logit(logits: Tensor, rest: float | Tensor, min_tokens_to_keep: int) -> Tensor | None:
    """The least logit (B, 1) that top-p keeps of each row: of its probable tokens, or of all if need be."""
    rests = rest[:, 0].tolist() if isinstance(rest, Tensor) else [rest] * len(logits)
    least = least_of_probable(logits.detach().numpy(), rests, min_tokens_to_keep)
    if least is None:
        return least_of_sorted(logits, rest, min_tokens_to_keep)
    if left := np.isnan(least).nonzero()[0].tolist():
        own = rest[left] if isinstance(rest, Tensor) else rest
        found = least_of_sorted(logits[left], own, min_tokens_to_keep)
        if found is None:
            return None
        least[left] = found[:, 0].numpy()
    return torch.from_numpy(least)[:, None]


def least_of_probable(rows: np.ndarray, rests: Sequence[float], min_tokens_to_keep: int) -> np.ndarray | None:
    """The least logit (B,) that top-p keeps of each row (B, V), NaN where it is in doubt.

    Tokens below an even share of the mass to remove are removed whatever their order: only the others are sorted. None
    where these are many.
    """
    most, vocabulary = rows.max(axis=-1, keepdims=True), rows.shape[1]
    if vocabulary <= SORTED_AT_ONCE or not np.isfinite(most).all():
        return None
    part = np.exp(rows[:, ::PART] - most)
    shares = np.array(rests, dtype=np.float32)[:, None] * part.mean(axis=-1, keepdims=True)
    if np.count_nonzero((part >= shares) & (part > 0)) > FEW * part.size:
        return None
    weights = np.exp(rows - most)
    totals = weights.sum(axis=-1, dtype=np.float64)
    limits = rests * totals
    are_probable = weights >= (limits / vocabulary).astype(np.float32)[:, None] * np.float32(0.999)
    if np.count_nonzero(are_probable) > FEW * rows.size:
        return None
    least = np.full(len(rows), np.nan, dtype=np.float32)
    for number, (row, is_probable, limit) in enumerate(zip(rows, are_probable, limits.tolist(), strict=True)):
        ascending = np.sort(row[is_probable.nonzero()[0]])
        sums = np.exp(ascending - most[number]).cumsum(dtype=np.float64)
        below = totals[number] - sums[-1]  # of the tokens that are removed whatever their order
        least[number] = _least_or_nan(ascending, [below, *(below + sums).tolist()], limit, min_tokens_to_keep)
    return least


def _least_or_nan(ascending: np.ndarray, sums: list[float], limit: float, min_tokens_to_keep: int) -> float:
    """The least of some logits (n,) that is kept, where sums (n + 1,) of what is before each stay within a limit."""
    count = min(bisect_right(sums, limit) - 1, len(ascending) - min_tokens_to_keep)
    if count < 0 or any(abs(one - limit) <= DOUBT * limit for one in sums[count : count + 2]):
        return math.nan
    return math.nan if count and ascending[count - 1] == ascending[count] else float(ascending[count])


def keep_among_few(logits: Tensor, rest: float | Tensor, min_tokens_to_keep: int) -> Tensor | None:
    """`keep_top_p` of one row in which another filter has left few tokens; None for other rows, and in doubt."""
    if len(logits) > 1 or not isinstance(rest, float):
        return None
    row = logits.detach().numpy()[0]
    left = row[row > -math.inf]
    return cut(row, left, rest, min_tokens_to_keep=min_tokens_to_keep) if len(left) <= TOKENS else None


def cut(row: np.ndarray, left: np.ndarray, rest: float, *, min_tokens_to_keep: int) -> Tensor | None:
    """Apply top-p to the logits `left` (n,), a row's largest, and remove all others of the row (V,): (1, V).

    `left` is sorted in place.
    None where rounding would decide, as the sums are not those of the whole row, and where there is nothing to keep.
    """
    left.sort()
    if not len(left) or not np.isfinite(left[-1]):
        return None
    with np.errstate(over="ignore"):  # a logit far below the largest counts as 0
        sums = np.exp(left - left[-1]).cumsum(dtype=np.float64)
    limit, doubt = rest * sums[-1], DOUBT * sums[-1]
    count = min(int(sums.searchsorted(limit, "right")), len(left) - min_tokens_to_keep)
    if count < 0 or not all(abs(near - limit) > doubt for near in sums[max(count - 1, 0) : count + 1].tolist()):
        return None
    if count and left[count - 1] == left[count]:  # the sort of the whole row decides
        kept = torch.from_numpy(np.where(row < left[0], OUT, row)[None])
        return kept.index_fill(1, kept.sort().indices[0, : len(row) - len(left) + count], -math.inf)
    return torch.from_numpy(np.where(row < left[count], OUT, row)[None])


def least_of_sorted(logits: Tensor, rest: float | Tensor, min_tokens_to_keep: int) -> Tensor | None:
    """The least logit (B, 1) that `keep_top_p` keeps: by the same sums, but with NumPy's sort, which is a lot faster.

    None where equal logits meet at the border: there torch's order of them decides.
    """
    ascending = np.sort(logits.detach().numpy(), axis=-1)
    sums = torch.from_numpy(ascending).softmax(-1).cumsum(-1).numpy()
    rests = rest[:, 0].tolist() if isinstance(rest, Tensor) else [rest] * len(sums)
    most = sums.shape[1] - min_tokens_to_keep
    removed = [min(int(row.searchsorted(np.float32(one), "right")), most) for row, one in zip(sums, rests, strict=True)]
    if any(count > 0 and row[count - 1] == row[count] for row, count in zip(ascending, removed, strict=True)):
        return None
    return torch.from_numpy(ascending[range(len(removed)), removed])[:, None]


def least_of_top(logits: Tensor, rest: float | Tensor, min_tokens_to_keep: int) -> Tensor | None:
    """The least logit (B, 1) that `keep_top_p` keeps, without its sort of the whole vocabulary.

    None where the most probable tokens do not decide it: they do not reach the share, or a tie or rounding decides.
    None too for a small vocabulary, where the sort is faster.
    """
    if logits.shape[-1] <= SORTED_AT_ONCE:
        return None
    share = 1 - rest
    top = logits.topk(min(TOKENS, logits.shape[-1])).values  # (B, K), falling
    likely = (top - logits.logsumexp(-1, keepdim=True)).exp()
    before = likely.cumsum(-1) - likely
    kept = (before < share).sum(-1, keepdim=True).clamp(min=min_tokens_to_keep)
    is_far = ((before - share).abs() > DOUBT).all(-1, keepdim=True)
    last = kept.clamp(max=top.shape[1] - 1)
    least = top.gather(-1, last - 1)
    is_told = is_far & (kept == last) & (least > top.gather(-1, last))
    return least if bool(is_told.all()) else None
