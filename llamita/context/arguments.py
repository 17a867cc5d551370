"""The one place where forward's familiar arguments become a context."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llamita.attention import backend as attention_backend
from llamita.attention.mask import Mask
from llamita.cache.cache import Cache
from llamita.context.cached import Cached
from llamita.context.causal import Causal
from llamita.context.packed import documents_of
from llamita.errors import UsageError


def from_arguments(
    embeds: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
    backend: str = "sdpa",
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Causal:
    """A context for the tokens whose embeddings (B, T, D) are given.

    attention_mask: (B, past + T), 1 for real tokens; or 4-D, bool or additive, passed through to the backend.
    position_ids: (B | 1, T); counted from the mask when absent, so that left padding is right by default. Positions
    that start again, without a mask or a cache, mean packed documents. Raises UsageError for what is no tensor.
    """
    check_tensors(attention_mask=attention_mask, position_ids=position_ids)
    batch, queries = embeds.shape[:2]
    offset = 0 if cache is None else cache.offset
    first, keys = (0, queries) if cache is None else cache.visible_range(queries)
    padding = dropped = given = documents = None
    if attention_mask is not None:
        attention_mask = attention_mask.to(embeds.device)
        _check_mask(attention_mask, batch, queries, offset)
        if attention_mask.ndim == 4:
            given = attention_mask
        else:
            padding = attention_mask.bool()
            dropped = padding[:, :first].sum(1) if first else None
            padding = padding[:, :keys] if cache is None else cache.mask_columns(padding, queries)
    if position_ids is None:
        position_ids = _positions(embeds, attention_mask if given is None else None, offset)
    elif attention_mask is None and cache is None:
        numbers = documents_of(position_ids.expand(batch, -1))
        documents = None if numbers is None else (numbers, numbers)
    mask = Mask(
        queries, keys, device=embeds.device, offset=offset, first=first, window=window,
        padding=padding, dropped=dropped, documents=documents, given=given,
    )  # fmt: skip
    attend = attention_backend(backend)
    if cache is None:
        return Causal(position_ids, mask, backend=attend, scale=scale, dropout=dropout)
    return Cached(position_ids, mask, cache, backend=attend, scale=scale, dropout=dropout)


def check_tensors(**given: object) -> None:
    """Raise UsageError for an argument that is neither a tensor nor None."""
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            advice = "unpack it with **" if isinstance(value, Mapping) else f"pass torch.tensor({name})"
            raise UsageError(f"{name} is a {type(value).__name__}, not a tensor: {advice}")


def _positions(embeds: Tensor, attention_mask: Tensor | None, offset: int | Tensor) -> Tensor:
    """Where the new tokens stand: (1, T) by count, or (B, T) by the number of real tokens before each."""
    slots = torch.arange(embeds.shape[1], device=embeds.device) + offset  # (T,)
    if attention_mask is None:
        return slots[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, slots]


def _check_mask(mask: Tensor, batch: int, queries: int, offset: int | Tensor) -> None:
    if mask.ndim not in (2, 4):
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: give (batch, tokens) or a 4-D mask")
    if mask.ndim == 4 or isinstance(offset, Tensor):
        return
    if mask.shape[0] != batch or mask.shape[1] < offset + queries:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but {batch} rows of {offset} cached and {queries} new "
            f"tokens need ({batch}, {offset + queries}): cover the cached tokens too"
        )
