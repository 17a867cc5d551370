"""Masks of tokens that are forbidden or forced: (B, V) -> (B, V)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamita.errors import UsageError


def among(tokens: Tensor, logits: Tensor) -> Tensor:
    """Which of the vocabulary (V,) are among the tokens (N,); ids beyond it are none, as for transformers."""
    vocabulary = logits.shape[-1]
    found = torch.zeros(vocabulary + 1, dtype=torch.bool, device=logits.device)
    return found.index_fill_(0, tokens.clamp(max=vocabulary), True)[:vocabulary]


def ban(logits: Tensor, tokens: Tensor, rows: Sequence[bool] | None = None) -> Tensor:
    """Remove the tokens (N,), in these rows or in all."""
    if rows is None or all(rows):
        return logits.masked_fill(among(tokens, logits), -math.inf)
    return _in_rows(ban, logits, tokens, rows)


def force(logits: Tensor, tokens: Tensor, rows: Sequence[bool] | None = None) -> Tensor:
    """Leave only the tokens (N,), all equally likely, in these rows or in all; raises UsageError for other ids."""
    if rows is None or all(rows):
        if int(tokens.max()) >= logits.shape[1]:
            raise UsageError(f"token {int(tokens.max())} is forced, but the vocabulary has {logits.shape[1]} tokens")
        return torch.full_like(logits, -math.inf).index_fill_(1, tokens, 0.0)
    return _in_rows(force, logits, tokens, rows)


def allow(
    logits: Tensor, input_ids: Tensor, allowed_tokens: Callable[[int, Tensor], Sequence[int]], *, beams: int = 1
) -> Tensor:
    """Leave only what allowed_tokens(prompt number, ids (T,)) lists; raises UsageError where that is nothing."""
    barrier = torch.full_like(logits, -math.inf)
    for row, ids in enumerate(input_ids):
        tokens = list(allowed_tokens(row // beams, ids))
        if not tokens:
            raise UsageError(f"prefix_allowed_tokens_fn allows no token for prompt {row // beams}: list at least one")
        barrier[row, tokens] = 0
    return logits + barrier


def replace_invalid(logits: Tensor) -> Tensor:
    """NaN becomes 0, infinities the largest and smallest number of the dtype."""
    info = torch.finfo(logits.dtype)
    return logits.nan_to_num(nan=0.0, posinf=info.max, neginf=info.min)


def _in_rows(
    change: Callable[[Tensor, Tensor], Tensor], logits: Tensor, tokens: Tensor, rows: Sequence[bool]
) -> Tensor:
    chosen = [row for row, is_chosen in enumerate(rows) if is_chosen]
    if not chosen:
        return logits
    index = torch.tensor(chosen, device=logits.device)
    return logits.index_copy(0, index, change(logits[index], tokens))
