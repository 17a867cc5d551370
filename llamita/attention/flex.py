"""torch's FlexAttention: blocks that the mask empties are never computed. Equals eager."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamita.attention.mask import Mask
from llamita.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# (row, head, query, key), each a scalar tensor of numbers -> bool scalar: may this query see this key?
Visibility = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention by a kernel compiled for the mask: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H).

    A query that sees nothing gets zeros, the mean of all values where the user's mask is additive. Compiled on CUDA;
    on the CPU torch runs its slow plain form, which has no backward pass.
    Raises UnsupportedError for dropout, and for gradients on the CPU.
    """
    if dropout:
        raise UnsupportedError('attn_implementation="flex" has no dropout: set attention_dropout to 0 or use sdpa')
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise UnsupportedError(
            'attn_implementation="flex" has no backward pass on the CPU: use sdpa, or call it under torch.no_grad()'
        )
    is_additive = mask.given is not None and mask.given.is_floating_point()
    out = _kernel(q.device)(
        q,
        k,
        v,
        score_mod=_added(mask.additive(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)) if is_additive else None,
        block_mask=None if is_additive else _blocks(mask, q.shape[0], q.shape[1]),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(1, 2)


def visibility(mask: Mask, batch: int, heads: int) -> Visibility:
    """The mask as a function of numbers, for rows `batch` and heads `heads`; for every mask but an additive one."""
    if mask.given is not None:
        given = mask.given.expand(batch, heads, -1, -1)
        return lambda row, head, query, key: given[row, head, query, key]
    # A tensor, so that a compiled kernel does not depend on how full the cache is.
    ahead = torch.as_tensor(mask.offset - mask.first, device=mask.device)
    rules: list[Visibility] = [lambda row, head, query, key: key <= query + ahead]
    if (window := mask.window) is not None:
        rules.append(lambda row, head, query, key: key > query + ahead - window)
    if (padding := mask.padding) is not None:
        rules.append(lambda row, head, query, key: padding[row, key])
    if mask.documents is not None:
        of_query, of_key = mask.documents
        rules.append(lambda row, head, query, key: of_query[row, query] == of_key[row, key])
    return _all_of(rules)


def _all_of(rules: list[Visibility]) -> Visibility:
    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = rules[0](row, head, query, key)
        for rule in rules[1:]:
            visible = visible & rule(row, head, query, key)
        return visible

    return may_see


def _added(bias: Tensor) -> Callable[..., Tensor]:
    def add(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[row, head, query, key]

    return add


def _blocks(mask: Mask, batch: int, heads: int) -> "BlockMask":
    """Which blocks of queries and keys meet, worked out once for all layers."""
    from torch.nn.attention.flex_attention import create_block_mask

    if "flex" not in mask.prepared:
        differs_by_row = any(x is not None for x in (mask.padding, mask.documents, mask.given))
        differs_by_head = mask.given is not None and mask.given.shape[1] > 1
        mask.prepared["flex"] = create_block_mask(
            visibility(mask, batch, heads),
            batch if differs_by_row else None,
            heads if differs_by_head else None,
            mask.queries,
            mask.keys,
            device=mask.device,
        )
    return mask.prepared["flex"]


def _kernel(device: torch.device) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():  # the caller's graph takes it in
        return flex_attention
    return _compiled() if device.type == "cuda" else _plain


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _plain(*args: Tensor, **options: object) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # needs a C++ compiler here
        return flex_attention(*args, **options)  # type: ignore[call-overload]
