# type: ignore  # Kernels are no Python that a type checker knows, and Triton need not be installed.
"""RMSNorm, with or without an addition before it, one row a program. Equals reference.rms_norm, add_rms_norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(x, delta, weight, out, total, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    is_here = column < width
    wide = tl.load(x + row + column, mask=is_here, other=0.0).to(tl.float32)
    if delta is not None:
        added = wide + tl.load(delta + row + column, mask=is_here, other=0.0).to(tl.float32)
        rounded = added.to(x.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=is_here)
        wide = rounded.to(tl.float32)
    mean = tl.sum(wide * wide, axis=0) / width
    # The cast down comes before the scale, as in LlamaRMSNorm.
    normed = (wide * tl.rsqrt(mean + eps)).to(x.dtype.element_ty).to(tl.float32)
    scale = tl.load(weight + column, mask=is_here, other=0.0).to(tl.float32)
    tl.store(out + row + column, (scale * normed).to(out.dtype.element_ty), mask=is_here)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm of x (..., D)."""
    return _launch(x.contiguous(), None, weight, eps)[0]


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + delta, and the sum: (..., D) x2."""
    return _launch(x.contiguous(), delta.contiguous(), weight, eps)


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=torch.promote_types(weight.dtype, x.dtype), device=x.device)
    total = x if delta is None else torch.empty_like(x)
    if x.numel():
        block = triton.next_power_of_2(width)
        warps = min(max(block // 512, 1), 16)
        # Without fused multiply-adds the sum is rounded where torch rounds it.
        _norm[(x.numel() // width,)](
            x, delta, weight, out, total, width, eps, BLOCK=block, num_warps=warps, enable_fp_fusion=False
        )
    return out, total
