"""Flash attention over sequences laid end to end, without their padding. Equals eager on real tokens."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from llamita.attention.mask import Mask
from llamita.errors import UnsupportedError

LARGEST_HEAD = 256


class Layout(NamedTuple):
    """Where the real tokens of a batch lie, and where each sequence starts once they are laid end to end.

    queries, keys: numbers of the real tokens among B * T and B * S, None for all of them.
    query_starts, key_starts: (sequences + 1,) int32.
    """

    queries: Tensor | None
    keys: Tensor | None
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


# kernel(q (tokens, N, H), k, v (tokens, K, H), layout, *, scale, window, dropout) -> (tokens, N, H). Causal: the last
# query of a sequence sees its last key. `window` counts the query's own token; None for no window.
Kernel = Callable[..., Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention by the flash-attn package where installed, else by torch's own variable-length flash kernel.

    q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H). Queries in the padding get zeros.
    Raises UnsupportedError without CUDA, in fp32, for 4-D masks, and for head sizes that the kernels do not know.
    """
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedError(
            'attn_implementation="flash_attention_2" needs a CUDA device and bfloat16 or float16, '
            f"not {q.device.type} and {str(q.dtype).removeprefix('torch.')}: use sdpa"
        )
    if q.shape[-1] % 8 or q.shape[-1] > LARGEST_HEAD:
        raise UnsupportedError(
            f'attn_implementation="flash_attention_2" needs a head_dim of at most {LARGEST_HEAD} that is a multiple '
            f"of 8, not {q.shape[-1]}: use sdpa"
        )
    kernel = by_flash_attn if find_spec("flash_attn") else by_torch
    return attend_by(kernel, q, k, v, mask, scale=scale, dropout=dropout)


def attend_by(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float) -> Tensor:
    """Lay the real tokens end to end, attend by the kernel, put its results back: (B, N, T, H) -> (B, T, N, H)."""
    if "flash" not in mask.prepared:
        mask.prepared["flash"] = layout_of(mask, q.shape[0])
    layout: Layout = mask.prepared["flash"]
    flat_q, flat_k, flat_v = (
        _end_to_end(x, real) for x, real in ((q, layout.queries), (k, layout.keys), (v, layout.keys))
    )
    out = kernel(flat_q, flat_k, flat_v, layout, scale=scale, window=mask.window, dropout=dropout)
    if layout.queries is not None:
        out = out.new_zeros(q.shape[0] * q.shape[2], *out.shape[1:]).index_copy(0, layout.queries, out)
    return out.unflatten(0, (q.shape[0], q.shape[2]))


def _end_to_end(x: Tensor, real: Tensor | None) -> Tensor:
    x = x.transpose(1, 2).flatten(0, 1)  # (B * T, N, H)
    return x if real is None else x.index_select(0, real)


def layout_of(mask: Mask, batch: int) -> Layout:
    """The layout of a mask's tokens for `batch` rows; raises UnsupportedError for masks that no layout says.

    Rows may have padding on either side or in the middle (a window then counts real tokens, not slots), empty slots
    at their end, and several documents.
    """
    if mask.given is not None:
        raise UnsupportedError('attn_implementation="flash_attention_2" reads no 4-D masks: use sdpa or flex')
    if mask.documents is not None and mask.queries != mask.keys:
        raise UnsupportedError('attn_implementation="flash_attention_2" cannot continue packed documents: use sdpa')
    ahead = mask.offset - mask.first  # the first query's place among the keys
    is_filled = isinstance(ahead, int) and ahead + mask.queries == mask.keys
    if is_filled and mask.padding is None and mask.documents is None:
        rows = torch.arange(batch + 1, dtype=torch.int32, device=mask.device)
        return Layout(None, None, rows * mask.queries, rows * mask.keys, mask.queries, mask.keys)
    slots = torch.arange(mask.keys, device=mask.device)
    real_keys = (slots < ahead + mask.queries).expand(batch, -1)  # (B, S)
    if mask.padding is not None:
        real_keys = real_keys & mask.padding
    real_queries = real_keys[:, ahead + torch.arange(mask.queries, device=mask.device)]  # (B, T)
    of_query, of_key = mask.documents or (None, None)
    query_starts, longest_query = _starts(real_queries, of_query)
    key_starts, longest_key = _starts(real_keys, of_key)
    numbers = [real.flatten().nonzero().flatten() for real in (real_queries, real_keys)]
    return Layout(numbers[0], numbers[1], query_starts, key_starts, longest_query, longest_key)


def _starts(real: Tensor, documents: Tensor | None) -> tuple[Tensor, int]:
    """Where sequences start among the real tokens (B, T), one a row or a document of a row; and the longest length."""
    if documents is None:
        lengths = real.sum(1)
    else:
        rows = torch.arange(real.shape[0], device=real.device)[:, None].expand_as(documents)
        pairs = torch.stack((rows[real], documents[real]), dim=1)
        lengths = torch.unique_consecutive(pairs, dim=0, return_counts=True)[1]
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return starts, int(lengths.max()) if lengths.numel() else 0


def by_flash_attn(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float, window: int | None, dropout: float
) -> Tensor:
    """The kernel of the flash-attn package: q (tokens, N, H), k and v (tokens, K, H) -> (tokens, N, H)."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    return flash_attn_varlen_func(
        q, k, v, *layout[2:], dropout_p=dropout, softmax_scale=scale, causal=True, window_size=(_left(window), 0)
    )


def by_torch(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float, window: int | None, dropout: float
) -> Tensor:
    """torch's own kernel, for the same shapes. Raises UnsupportedError for dropout."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise UnsupportedError(
            "torch's flash kernel has no dropout: set attention_dropout to 0, use sdpa, or pip install flash-attn"
        )
    out = varlen_attn(
        q, k, v, *layout[2:], scale=scale, window_size=(_left(window), 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, Tensor)
    return out


def _left(window: int | None) -> int:
    """How many tokens before its own a query sees, -1 for all."""
    return -1 if window is None else window - 1
