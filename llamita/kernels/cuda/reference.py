"""References of the Triton kernels in plain torch, which also run where there is no GPU or no Triton."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.kernels.cuda.planes import GROUP, Planes


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, K) times weight (N, K), added up in fp32: (M, N) in x's dtype."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def few_rows_blocks(x: Tensor, planes: Planes, bias: Tensor | None) -> Tensor:
    """x (M, K) times the quantized matrix (N, K): (M, N) in x's dtype."""
    return few_rows(x, dequantize(planes, torch.float32), bias)


def dequantize(planes: Planes, dtype: torch.dtype) -> Tensor:
    """The weights (N, K) of the planes."""
    columns = planes.shape[1]
    scale = planes.scale.float().repeat_interleave(columns // planes.scale.shape[1], 1)
    if planes.sub_scale is not None:
        scale = scale * planes.sub_scale.float().repeat_interleave(columns // planes.sub_scale.shape[1], 1)
    weights = scale * (planes.codes().float() - planes.zero)
    if planes.minimum is not None:
        minimum = planes.minimum.float().repeat_interleave(columns // planes.minimum.shape[1], 1)
        if planes.sub_minimum is not None:
            minimum = minimum * planes.sub_minimum.float().repeat_interleave(GROUP, 1)
        weights = weights - minimum
    return weights.to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LlamaRMSNorm: divided by the root mean square in fp32, cast down, and only then scaled: (..., D) -> (..., D)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + delta, and that sum itself, rounded to x's dtype first: (..., D) x2."""
    total = x + delta
    return rms_norm(total, weight, eps), total


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the first rounded before the product: (..., F)."""
    return F.silu(gate) * up


def rotate_and_store(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate q (B, T, N, H) and k (B, T, K, H); write k and v (B, T, K, H) into the cache after `start` slots.

    cos, sin: (B | 1, T, 1, H), in q's dtype (every step rounds to it) or in fp32 (one rounding at the end).
    start: (), long. keys, values: (B, K, S, H), changed in place; slots beyond S are left out. Returns the rotated q.
    """
    token = torch.arange(keys.shape[2], device=keys.device) - start  # that a slot is for
    is_new = ((token >= 0) & (token < k.shape[1]))[:, None]
    token = token.clamp(0, k.shape[1] - 1)
    for buffer, new in ((keys, rotated(k, cos, sin)), (values, v)):
        buffer.copy_(torch.where(is_new, new.transpose(1, 2)[:, :, token].to(buffer.dtype), buffer))
    return rotated(q, cos, sin)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, heads, H) rotated by the angles of its positions, (B | 1, T, 1, H), as by model.rope."""
    half = x.shape[-1] // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    if cos.dtype == x.dtype:
        return x * cos + swapped * sin
    return (x.float() * cos + swapped.float() * sin).to(x.dtype)
