"""A pass over rows of any lengths, whose keys and values are in blocks."""

from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, compress

import torch
from torch import Tensor

from llamita.attention import backend as attention_backend
from llamita.attention.mask import Mask
from llamita.cache.paged import PagedCache
from llamita.context.batch import BatchLayout
from llamita.context.protocol import Rotation


class Paged:
    """New tokens of several rows, one row after the other: ids (1, T), with T tokens of all rows together.

    starts: how many tokens of each row are stored already. counts: how many new ones it has. tables: its blocks in
    order, enough for the new tokens too; kernels read an array of int64 where it lies. Every row attends by itself, so
    that its numbers do not depend on the others'.
    levels: rows see what rows of lower levels write to their blocks in this pass; None where no block is written by two
    rows. wanted: of each row, whether the logits of what follows it are; None for all. run: None, or what passes
    have in common between which nobody else changes the model.
    """

    cache = None  # forward has none to return

    def __init__(
        self,
        pages: PagedCache,
        *,
        starts: Sequence[int],
        counts: Sequence[int],
        tables: Sequence[Sequence[int]],
        scale: float,
        window: int | None = None,
        backend: str = "sdpa",
        levels: Sequence[int] | None = None,
        wanted: Sequence[bool] | None = None,
        run: object | None = None,
    ) -> None:
        self.pages, self.starts, self.counts, self.tables = pages, list(starts), list(counts), tables
        self.scale, self.window, self.run, self._backend = scale, window, run, backend
        self._levels = [0] * len(self.counts) if levels is None else levels
        self.device = pages.device
        self._ends = [*accumulate(self.counts)]
        last = [end - 1 for end in (self._ends if wanted is None else compress(self._ends, wanted))]
        self.last_tokens = last or [self._ends[-1] - 1]  # as no head is made for none

    @cached_property
    def last(self) -> Tensor:
        """The indices of `last_tokens`, those of each wanted row, for logits_to_keep: int64 (n,)."""
        return torch.tensor(self.last_tokens, dtype=torch.int64, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Where the tokens stand in their texts: (1, T)."""
        parts = [torch.arange(a, a + n, device=self.device) for a, n in zip(self.starts, self.counts, strict=True)]
        return torch.cat(parts)[None]

    @property
    def layouts(self) -> list[BatchLayout]:
        """Where the rows of each level stand, the lowest first, for kernels."""
        levels = sorted(set(self._levels))
        if len(levels) == 1:
            return [self._layout(self.starts, self.counts, self._firsts, self.tables)]
        each = list(zip(self._levels, self.starts, self.counts, self._firsts, self.tables, strict=True))
        parts = ([row for own, *row in each if own == level] for level in levels)
        return [self._layout(*map(list, zip(*rows, strict=True))) for rows in parts]

    def _layout(
        self, starts: list[int], counts: list[int], firsts: list[int], tables: Sequence[Sequence[int]]
    ) -> BatchLayout:
        return BatchLayout(
            start=starts,
            tables=[table if isinstance(table, array) else array("q", table) for table in tables],
            page_size=self.pages.block_size,
            spans=(counts, firsts),
            is_blocked=True,
            is_tiled=self.pages.is_tiled,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Rotate, store and attend: q (1, T, N, H), k and v (1, T, K, H) -> (1, T, N, H)."""
        q, k, v = rotation(q).transpose(1, 2), rotation(k).transpose(1, 2), v.transpose(1, 2)
        attend, out = attention_backend(self._backend), list[Tensor]()
        for first, count, (slots, mask) in zip(self._firsts, self.counts, self._rows, strict=True):
            own = slice(first, first + count)
            self.pages.write(layer, slots[len(slots) - count :], k[0, :, own], v[0, :, own])
            seen = (x[None].to(q.dtype) for x in self.pages.read(layer, slots))
            out.append(attend(q[:, :, own], *seen, mask, scale=self.scale, dropout=0.0))
        return torch.cat(out, dim=1)

    @cached_property
    def _firsts(self) -> list[int]:
        return [0, *self._ends[:-1]]

    @cached_property
    def _rows(self) -> list[tuple[Tensor, Mask]]:
        """The slots of each row's tokens, and which of them each new token sees."""
        rows: list[tuple[Tensor, Mask]] = []
        for start, count, table in zip(self.starts, self.counts, self.tables, strict=True):
            mask = Mask(count, start + count, device=self.device, offset=start, window=self.window)
            rows.append((self.pages.slots(table, 0, start + count).to(self.device), mask))
        return rows
