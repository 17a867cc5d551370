"""A pass over rows whose keys and values are in blocks."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from llamita.attention import backend as attention_backend
from llamita.attention.mask import Mask
from llamita.cache.paged import PagedCache
from llamita.context.batch import BatchLayout
from llamita.context.protocol import Rotation


class Paged:
    """T new tokens of each of B rows, which are stored in blocks of a paged cache and attend to their own row.

    starts: (B,) how many tokens of each row are stored already. tables: the blocks of each row, in order, enough for
    the new tokens too. Every row attends by itself, so that its numbers do not depend on the others'.
    """

    cache = None  # forward has none to return

    def __init__(
        self,
        pages: PagedCache,
        starts: Sequence[int],
        tables: Sequence[Sequence[int]],
        tokens: int,
        *,
        scale: float,
        window: int | None = None,
        backend: str = "sdpa",
    ) -> None:
        self.pages, self.starts, self.tables, self.tokens = pages, list(starts), tables, tokens
        self.scale, self.window = scale, window
        device = pages.buffers[0][0].device
        self.positions = torch.tensor(self.starts, device=device)[:, None] + torch.arange(tokens, device=device)
        self._attend = attention_backend(backend)

    @cached_property
    def layout(self) -> BatchLayout:
        """The same for kernels."""
        longest = max(map(len, self.tables))
        tables = torch.tensor([[*table, *[0] * (longest - len(table))] for table in self.tables], dtype=torch.int64)
        origin = torch.zeros(len(self.tables), dtype=torch.int64)
        return BatchLayout(
            torch.tensor(self.starts), torch.zeros_like(origin), tables.contiguous(), origin, self.pages.block_size
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Rotate, store and attend: q (B, T, N, H), k and v (B, T, K, H) -> (B, T, N, H)."""
        q, k, v = rotation(q).transpose(1, 2), rotation(k).transpose(1, 2), v.transpose(1, 2)
        keys, values = self.pages.buffers[layer]
        rows: list[Tensor] = []
        for row, (slots, mask) in enumerate(self._rows):
            new = slots[-self.tokens :]
            keys[0, :, new], values[0, :, new] = k[row].to(keys.dtype), v[row].to(values.dtype)
            seen = keys[:, :, slots].to(q.dtype), values[:, :, slots].to(q.dtype)
            rows.append(self._attend(q[row : row + 1], *seen, mask, scale=self.scale, dropout=0.0))
        return torch.cat(rows)

    @cached_property
    def _rows(self) -> list[tuple[Tensor, Mask]]:
        """The slots of each row's tokens, and which of them each new token sees."""
        device = self.positions.device
        ends = [start + self.tokens for start in self.starts]
        slots = [self.pages.slots(table, 0, end).to(device) for table, end in zip(self.tables, ends, strict=True)]
        masks = [
            Mask(self.tokens, end, device=device, offset=start, window=self.window)
            for start, end in zip(self.starts, ends, strict=True)
        ]
        return list(zip(slots, masks, strict=True))
