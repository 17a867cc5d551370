"""The reference attention, one plain step a line; every other backend is held to it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.attention.mask import Mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with the softmax in fp32.

    q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H). A query that sees nothing gets the mean of all values.
    """
    return mix(weights(q, k, mask, scale=scale, dropout=dropout), v)


def weights(q: Tensor, k: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """How much each query takes of each key: q (B, N, T, H), k (B, K, S, H) -> (B, N, T, S), after the dropout."""
    k = repeat_heads(k, q.shape[1])
    scores = torch.matmul(q, k.transpose(2, 3)) * scale + mask.additive(q.dtype)  # (B, N, T, S)
    if q.dtype == torch.float16:  # the lowest number plus a negative score overflows to -inf in this type alone
        scores = scores.clamp(min=torch.finfo(torch.float16).min)
    # The cast comes before the dropout, as in transformers: the other order rounds differently.
    return F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), p=dropout, training=dropout > 0)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """Values by their weights: (B, N, T, S) and v (B, K, S, H) -> (B, T, N, H)."""
    return torch.matmul(weights, repeat_heads(v, weights.shape[1])).transpose(1, 2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Give every query head its own copy of the key/value head it shares: (B, K, S, H) -> (B, N, S, H)."""
    groups = heads // x.shape[1]
    if groups == 1:
        return x
    return x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)
