"""Where the rows of a pass stand, for kernels that read a cache themselves."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Numbers = Sequence[int] | int  # of B rows; one where it is the same for all


@dataclass(slots=True, eq=False)  # not frozen, and without tensors: one is made at every step of an engine
class BatchLayout:
    """For each of B rows: which of its tokens the pass begins with, and where in the cache its tokens lie.

    start: the number of the first new token, counted from the row's own first; below 0 for padding.
    first: the slot of the row's token 0, where its tokens lie in slots next to each other.
    tables: None for that; else the pages of each row in order: an array of int64 for each row, or one of all, (n,), in
    which `origin` is the entry of token 0.
    page_size: slots of a page, a power of two. is_blocked: whether the pages are blocks of a `PagedCache`; else tables
    name pages of slots that lie as if there were no pages. is_tiled: whether the blocks' keys are in tiles.
    spans: for rows of any lengths in one row of ids: how many new tokens each row has, and the index of the first of
    them. None where the ids are (B, T).
    """

    start: Numbers
    first: Numbers = 0
    tables: "np.ndarray | Sequence[array[int]] | None" = None
    origin: Numbers = 0
    page_size: int = 1
    spans: tuple[Sequence[int], Sequence[int]] | None = None
    is_blocked: bool = False
    is_tiled: bool = False

    def later(self, tokens: int) -> "BatchLayout":
        """The layout of the same pass without its first `tokens` tokens."""
        if not tokens:
            return self
        start = self.start
        return replace(self, start=start + tokens if isinstance(start, int) else [one + tokens for one in start])

    @classmethod
    def of_mask(cls, mask: Tensor | None, *, rows: int, cached: int, tokens: int) -> "BatchLayout | None":
        """The layout of T new tokens after `cached` slots. mask: (B, S), False hides a slot; None hides none.

        Hidden slots may be padding on the left, holes among those that are cached, or the last of the new ones. Returns
        None for any other mask.
        """
        if mask is None:
            return cls(cached)
        if mask.shape != (rows, cached + tokens) or mask.device.type != "cpu":
            return None
        shown = mask.bool()
        first = cached + tokens - shown.sum(dim=1)  # all of a row may be padding, which a later pass ends
        slots = torch.arange(cached + tokens, device="cpu")
        if torch.equal(shown, slots >= first[:, None]):
            return cls((cached - first).tolist(), first.tolist())
        return cls._with_holes(shown, slots, cached)

    @classmethod
    def _with_holes(cls, shown: Tensor, slots: Tensor, cached: int) -> "BatchLayout | None":
        """A page of one slot for each token that is seen, and for the padding before it."""
        old, new = shown[:, :cached], shown[:, cached:]
        none = torch.where(old.any(1), 0, new.shape[1])
        padding = torch.where(new.any(1), new.int().argmax(1), none)  # new tokens before a row's first
        if bool((old.any(1) & (padding > 0)).any()) or bool((new.int().diff(dim=1) > 0).sum(1).gt(padding > 0).any()):
            return None
        seen = old.sum(1)
        rows = torch.arange(len(shown), device="cpu")
        # In the order of: hidden slots of the cache, none of which anybody asks for; those that are seen; the new ones.
        order = torch.cat((old.int().argsort(dim=1, stable=True), slots[cached:].expand(len(shown), -1)), dim=1)
        origin = rows * order.shape[1] + cached - seen + padding
        return cls((seen - padding).tolist(), 0, order.flatten().numpy(), origin.tolist())
