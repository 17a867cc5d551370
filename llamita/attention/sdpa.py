"""torch's scaled_dot_product_attention, called in the forms that equal transformers' bit for bit. Equals eager."""

import torch.nn.functional as F
from torch import Tensor

from llamita.attention.eager import repeat_heads
from llamita.attention.mask import Mask

# Above this head size the kernels that read grouped heads in place fall back to a slow path on CUDA.
LARGEST_GROUPED_HEAD = 256


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention by torch's fused kernel: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H).

    Three forms for grouped heads, as each is fastest and as transformers has them: without a mask the kernel groups,
    one masked query folds its group into the query axis, several masked queries get repeated keys.
    """
    heads, length = q.shape[1:3]
    dense = None if mask.is_plain_causal else _dense(mask, q)
    if dense is None and length > 1:
        k, v = k[:, :, :length], v[:, :, :length]  # not the empty slots of a cache of fixed size
    grouped = heads != k.shape[1] and dense is None and q.shape[-1] <= LARGEST_GROUPED_HEAD
    if heads != k.shape[1] and not grouped:
        if length == 1:
            q = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # (B, K, N/K, H)
            dense = _fold(dense, k.shape[1])
        else:
            k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    is_causal = dense is None
    if length == 1:  # a branch: in a compiled graph `length > 1` is a symbol, and the kernel wants a bool
        is_causal = False
    out = F.scaled_dot_product_attention(q, k, v, dense, dropout, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return out.reshape(out.shape[0], heads, length, -1).transpose(1, 2)


def _dense(mask: Mask, q: Tensor) -> Tensor:
    """The mask as sdpa reads it: bool, or additive where the user gave one."""
    if mask.given is not None and mask.given.is_floating_point():
        return mask.additive(q.dtype)
    # The CPU kernel gives zeros for a query that sees nothing, and so does transformers; CUDA kernels may give NaN.
    visible = mask.visible if q.device.type == "cpu" else mask.visible_somewhere
    return visible.expand(q.shape[0], -1, -1, -1)


def _fold(dense: Tensor | None, groups: int) -> Tensor | None:
    """A mask with one row a query head, (B, N, 1, S) -> (B, K, N/K, S); one shared by all heads stays as it is."""
    if dense is None or dense.shape[1] == 1:
        return dense
    return dense.reshape(dense.shape[0], groups, -1, dense.shape[-1])
