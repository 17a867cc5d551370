"""Attention in training on CPUs by our own kernels. Equals sdpa.

In fp32 its forward pass is that of sdpa bit for bit. In bf16, where the machine has dot products of it, it is our
kernel's, up to rounding. Gradients are those of reference.attention_gradients, up to the order of sums. torch's kernels
take two to three times as long, and work across documents.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llamita.attention import sdpa
from llamita.attention.autocast import compute_dtype
from llamita.attention.eager import repeat_heads
from llamita.attention.mask import Mask, document_starts
from llamita.kernels.cpu.arguments import AttentionGradients, WholeAttention, bits
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.runtime.program import Kernel, named
from llamita.kernels.cpu.training import has_pairs, is_known, run

COLUMNS, WIDEST = 32, 128  # what the kernel's heads are a multiple of, and their largest size


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H).

    What our kernel does not know is left to sdpa: other devices and dtypes, odd heads, padding, a 4-D mask, a cache,
    dropout.
    """
    q, k, v = (x.to(compute_dtype(x)) for x in (q, k, v))  # as autocast does for sdpa
    is_needed = q.dtype == torch.bfloat16 or _needs_gradients(q, k, v)
    if dropout or not is_needed or not _is_known(q, k, v, mask):
        return sdpa.attend(q, k, v, mask, scale=scale, dropout=dropout)
    return cast("Tensor", Attended.apply(q, k, v, mask, scale))


def _needs_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in inputs)


def _is_known(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return False
    if q.shape[-1] % COLUMNS or q.shape[-1] > WIDEST or not k.shape[-1] == v.shape[-1] == q.shape[-1]:
        return False
    if mask.given is not None or mask.padding is not None or mask.queries == 1:
        return False
    if mask.queries != mask.keys or mask.first or not isinstance(mask.offset, int) or mask.offset:
        return False
    return is_known(q)


class Attended(torch.autograd.Function):
    """Causal attention; keeps its result and a logarithm for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
        """Our kernel's where it is by far the faster, else the operation of sdpa.

        q (B, N, T, H), k and v (B, K, T, H) -> (B, T, N, H).
        """
        starts, sides = first_keys(mask, len(q)), (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        if q.dtype == torch.bfloat16 and has_pairs():
            out, logs = whole(*sides, starts, scale=scale)
        else:
            out, logs = _by_torch(q, k, v, mask, scale)
        ctx.save_for_backward(*sides, out, logs, starts)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of q, k and v."""
        q, k, v, out, logs, starts = ctx.saved_tensors
        d_qkv = gradients(q, k, v, out, d_out.to(q.dtype), logs, starts, scale=ctx.scale)
        return *(x.transpose(1, 2) for x in d_qkv), None, None


def _by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    """The result of sdpa (B, T, N, H), and the softmax's logarithms (B, T, N), which its operation gives too."""
    bias = None if mask.is_plain_causal else hidden(mask, q.dtype)
    keys, values = (k, v) if bias is None else (repeat_heads(x, q.shape[1]) for x in (k, v))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, keys, values, 0.0, bias is None, attn_mask=bias, scale=scale
    )
    return found[0].transpose(1, 2), found[1].transpose(1, 2)


def hidden(mask: Mask, dtype: torch.dtype) -> Tensor:
    """As sdpa writes a mask of bools: 0 where visible, -inf where not, (B | 1, 1, T, S); kept in the mask."""
    name = f"hidden {dtype}"
    if name not in mask.prepared:
        mask.prepared[name] = torch.zeros(mask.visible.shape, dtype=dtype, device=mask.visible.device).masked_fill_(
            ~mask.visible, -torch.inf
        )
    return mask.prepared[name]


def first_keys(mask: Mask, rows: int) -> Tensor:
    """The first slot that each query sees: int64 (B, T), which never falls in a row; kept in the mask."""
    if "first keys" not in mask.prepared:
        slots = torch.arange(mask.queries, device="cpu").expand(rows, -1)
        starts = torch.zeros_like(slots)
        if mask.documents is not None:
            starts = document_starts(mask.documents[0]).expand(rows, -1)
        if mask.window is not None:
            starts = torch.maximum(starts, slots - mask.window + 1)
        mask.prepared["first keys"] = starts.contiguous()
    return mask.prepared["first keys"]


def whole(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """The result (B, T, N, H) of q, k (B, T, K, H) and v, all bf16, and the softmax's logarithms fp32 (B, T, N)."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    most, totals = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    arguments = WholeAttention(q, k, v, out, most, totals, starts, **_sizes(q, k, scale, 6))
    run(WHOLE, arguments, chunks=k.shape[0] * k.shape[2])
    return out, most.mul_(scale).add_(totals.log_())


def gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, logs: Tensor, starts: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (B, T, N, H), k and v (B, T, K, H), fp32 or bf16; see `AttentionGradients`."""
    q, k, v, out, d_out, logs = (x.contiguous() for x in (q, k, v, out, d_out, logs))
    d_qkv, kernel = [torch.empty_like(x) for x in (q, k, v)], _kernel(q.dtype)
    # Two sums in fp32; keys, values and pairs of keys.
    sizes = _sizes(q, k, scale, 14 if kernel is PAIRS else 16)
    run(kernel, AttentionGradients(q, k, v, out, d_out, logs, starts, *d_qkv, **sizes), chunks=len(k) * k.shape[2])
    return d_qkv[0], d_qkv[1], d_qkv[2]


def _sizes(q: Tensor, k: Tensor, scale: float, held: int) -> dict[str, Any]:
    """What the arguments of both kernels end with; held: bytes that a chunk holds for each element of its keys."""
    rows, tokens, heads, width = k.shape
    work_size = held * -(-tokens // KEYS) * KEYS * width
    work = torch.empty(rows * heads * work_size, dtype=torch.uint8, device="cpu")
    return {
        "work": work, "work_size": work_size, "tokens": tokens, "heads": heads, "group": q.shape[2] // heads,
        "width": width, "scale": bits(scale),
    }  # fmt: skip


FP32, BF16, PAIRS = (named("attention_gradients", f"gradients_{name}") for name in ("fp32", "bf16", "pairs"))
WHOLE = named("whole_attention", "attend_pairs")


def _kernel(dtype: torch.dtype) -> Kernel:
    if dtype == torch.float32:
        return FP32
    return PAIRS if has_pairs() else BF16
