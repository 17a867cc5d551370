# type: ignore  # Kernels are no Python that a type checker knows, and Triton need not be installed.
"""SiLU of the gate times the up projection, in one kernel. Equals reference.silu_gate."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _silu_gate(gate, up, out, width, gate_stride, up_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_here = column < width
    opened = tl.load(gate + row * gate_stride + column, mask=is_here, other=0.0).to(tl.float32)
    through = tl.load(up + row * up_stride + column, mask=is_here, other=0.0).to(tl.float32)
    # Rounded before the product, as two torch operations round it.
    opened = (opened / (1.0 + tl.exp(-opened))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (opened * through).to(out.dtype.element_ty), mask=is_here)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: (..., F); the two may be halves of one tensor (..., 2F)."""
    width = gate.shape[-1]
    flat_gate, flat_up = gate.reshape(-1, width), up.reshape(-1, width)
    if flat_gate.stride(1) != 1 or flat_up.stride(1) != 1:
        flat_gate, flat_up = flat_gate.contiguous(), flat_up.contiguous()
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        grid = (flat_gate.shape[0], triton.cdiv(width, BLOCK))
        strides = flat_gate.stride(0), flat_up.stride(0)
        _silu_gate[grid](flat_gate, flat_up, out, width, *strides, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False)
    return out
