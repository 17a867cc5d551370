"""A batch of texts that grow at different speeds: shared slots, with holes where a row has no token."""

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.errors import UsageError
from llamita.sampling.history import History


class RaggedBatch:
    """The texts of B rows in S slots that all rows share; a slot that is not real holds no token of its row.

    Rows stay aligned: a rejected draft becomes a hole, which the attention mask hides and positions skip. The last slot
    holds the newest token, which no cache has.

    tokens: (B, S). real: (B, S) bool. Raises UsageError for a mask of another shape than the ids.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise UsageError(
                f"the attention mask is {tuple(attention_mask.shape)} and the ids {tuple(input_ids.shape)}: "
                "speculative decoding looks at the whole text, pass the ids of cached tokens too"
            )
        self.tokens = input_ids
        self.real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        self._prompt_length = input_ids.shape[1]
        self._prompts = self.real.sum(-1)  # (B,)

    @property
    def width(self) -> int:
        """S, how many slots there are."""
        return self.tokens.shape[1]

    def row(self, number: int) -> Tensor:
        """The tokens (T,) of one row."""
        return self.tokens[number][self.real[number]]

    def append(self, tokens: Tensor, real: Tensor) -> None:
        """Append slots (B, n)."""
        self.tokens = torch.cat((self.tokens, tokens), dim=1)
        self.real = torch.cat((self.real, real), dim=1)

    def history(self) -> History:
        """The texts without holes, all ending in the last column, as penalties read them."""
        order = packing(self.real)
        lengths = self.real.sum(-1)
        first = order.shape[1] - lengths
        return History(
            self.tokens.gather(1, order),
            prompt_length=self._prompt_length,
            first=first if bool(first.any()) else None,
            written=(lengths - self._prompts).tolist(),
        )

    def holes(self) -> int:
        """The most holes of any row."""
        return int((self.width - self.real.int().argmax(-1) - self.real.sum(-1)).max())

    def compact(self, caches: list[DynamicCache], *, tolerated: float) -> None:
        """Remove the holes, here and in the caches, if they exceed this share of the slots.

        Shorter rows get padding on the left.
        """
        if self.holes() <= tolerated * self.width:
            return
        order = packing(self.real)
        dropped = self.width - order.shape[1]
        self.tokens, self.real = self.tokens.gather(1, order), self.real.gather(1, order)
        for cache in caches:
            # Tokens only move to the right, so what a slot is to hold lies in the cache, if it is no padding.
            rearrange(cache, order[:, : cache.length - dropped].clamp(max=cache.length - 1))


def packing(real: Tensor) -> Tensor:
    """Which slots (B, longest) to take so that the real ones of (B, S) stand in order at the end."""
    longest = int(real.sum(-1).max())
    return real.int().argsort(dim=1, stable=True)[:, real.shape[1] - longest :]


def rearrange(cache: DynamicCache, order: Tensor) -> None:
    """Make slot j of row i what slot `order[i, j]` (B, S) was."""
    if cache.positions is not None:
        cache.positions = cache.positions.gather(1, order)
    if not isinstance(cache, GrowingCache):
        cache.keys, cache.values = [_moved(k, order) for k in cache.keys], [_moved(v, order) for v in cache.values]
        return
    stays = order == torch.arange(order.shape[1], device=order.device)
    starts = stays.int().cumprod(1).sum(1).tolist()  # slots before these do not move
    for x in (*cache.keys, *cache.values):  # views of buffers, changed in place
        for row, start in enumerate(starts):
            if start < order.shape[1]:
                x[row, :, start : order.shape[1]] = x[row].index_select(1, order[row, start:].to(x.device))
    positions, cache.positions = cache.positions, None
    cache.crop(order.shape[1])
    cache.positions = positions


def _moved(x: Tensor, order: Tensor) -> Tensor:
    """Slots of x (B, K, S, H) in this order (B, S); index_select copies whole slots, gather single numbers."""
    rows = zip(x, order.to(x.device), strict=True)
    return torch.stack([row.index_select(1, slots) for row, slots in rows])
