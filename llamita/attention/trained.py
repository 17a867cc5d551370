"""torch's scaled_dot_product_attention with a backward pass by our kernel for CPUs. Equals sdpa.

Its forward pass is that of sdpa bit for bit. Its gradients are those of reference.attention_gradients, up to the order
of sums; torch's own kernel takes three to four times as long for them, and works across documents.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llamita.attention import sdpa
from llamita.attention.eager import repeat_heads
from llamita.attention.mask import Mask
from llamita.kernels.cpu.arguments import AttentionGradients, bits
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.runtime.program import Program, named, unsupported_reason

COLUMNS, WIDEST = 32, 128  # what the kernel's heads are a multiple of, and their largest size


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention by torch's fused kernel: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H).

    What our kernel does not know is left to sdpa: other devices and dtypes, odd heads, padding, a 4-D mask, a cache,
    dropout.
    """
    q, k, v = (x.to(compute_dtype(x)) for x in (q, k, v))  # as autocast does for sdpa
    if dropout or not _needs_gradients(q, k, v) or not _is_known(q, k, v, mask):
        return sdpa.attend(q, k, v, mask, scale=scale, dropout=dropout)
    return cast("Tensor", Attended.apply(q, k, v, mask, scale))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on (fp64 stays, as in torch), else that of x."""
    device = x.device.type
    is_cast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


def _needs_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in inputs)


def _is_known(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return False
    if q.shape[-1] % COLUMNS or q.shape[-1] > WIDEST or not k.shape[-1] == v.shape[-1] == q.shape[-1]:
        return False
    if mask.given is not None or mask.padding is not None or mask.queries == 1:
        return False
    if mask.queries != mask.keys or mask.first or not isinstance(mask.offset, int) or mask.offset:
        return False
    return type(q.data) is Tensor and not torch.compiler.is_compiling() and has_kernels()


@cache
def has_kernels() -> bool:
    """Whether this machine can run our kernels."""
    return unsupported_reason() is None


class Attended(torch.autograd.Function):
    """Causal attention; keeps its result and a logarithm for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
        """As sdpa: the same operation, which gives the logarithms too."""
        bias = None if mask.is_plain_causal else hidden(mask, q.dtype)
        keys, values = (k, v) if bias is None else (repeat_heads(x, q.shape[1]) for x in (k, v))
        out, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, keys, values, 0.0, bias is None, attn_mask=bias, scale=scale
        )
        out, logs = out.transpose(1, 2), logs.transpose(1, 2)
        ctx.save_for_backward(*(x.transpose(1, 2) for x in (q, k, v)), out, logs, first_keys(mask, len(q)))
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of q, k and v."""
        q, k, v, out, logs, starts = ctx.saved_tensors
        d_qkv = gradients(q, k, v, out, d_out.to(q.dtype), logs, starts, scale=ctx.scale)
        return *(x.transpose(1, 2) for x in d_qkv), None, None


def hidden(mask: Mask, dtype: torch.dtype) -> Tensor:
    """As sdpa writes a mask of bools: 0 where visible, -inf where not, (B | 1, 1, T, S); kept in the mask."""
    name = f"hidden {dtype}"
    if name not in mask.prepared:
        mask.prepared[name] = torch.zeros(mask.visible.shape, dtype=dtype).masked_fill_(~mask.visible, -torch.inf)
    return mask.prepared[name]


def first_keys(mask: Mask, rows: int) -> Tensor:
    """The first slot that each query sees: int64 (B, T), which never falls in a row; kept in the mask."""
    if "first keys" not in mask.prepared:
        slots = torch.arange(mask.queries).expand(rows, -1)
        starts = torch.zeros_like(slots)
        if mask.documents is not None:
            own = mask.documents[0].expand(rows, -1)
            is_new = torch.diff(own, prepend=own[:, :1], dim=1) != 0
            starts = torch.where(is_new, slots, 0).cummax(1).values
        if mask.window is not None:
            starts = torch.maximum(starts, slots - mask.window + 1)
        mask.prepared["first keys"] = starts.contiguous()
    return mask.prepared["first keys"]


def gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, logs: Tensor, starts: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (B, T, N, H), k and v (B, T, K, H), fp32 or bf16; see `AttentionGradients`."""
    q, k, v, out, d_out, logs = (x.contiguous() for x in (q, k, v, out, d_out, logs))
    (rows, tokens, heads, width), kernel = k.shape, _kernel(q.dtype)
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
    bytes_of_one = 14 if kernel is PAIRS else 16  # two sums in fp32; keys, values and pairs of keys
    work_size = bytes_of_one * -(-tokens // KEYS) * KEYS * width
    work = torch.empty(rows * heads * work_size, dtype=torch.uint8)
    program = Program()
    program.add(kernel, AttentionGradients(
        q, k, v, out, d_out, logs, starts, d_q, d_k, d_v, work, work_size, tokens, heads, q.shape[2] // heads, width,
        bits(scale),
    ), chunks=rows * heads)  # fmt: skip
    program.run()
    return d_q, d_k, d_v


FP32, BF16, PAIRS = (named("attention_gradients", f"gradients_{name}") for name in ("fp32", "bf16", "pairs"))


def _kernel(dtype: torch.dtype) -> Any:
    if dtype == torch.float32:
        return FP32
    from llamita.kernels.cpu import isa  # it imports LLVM, which only kernels need

    return PAIRS if isa.has("avx512bf16") else BF16
