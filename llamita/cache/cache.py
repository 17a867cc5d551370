"""What every cache can do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from typing import Self

import torch
from torch import Tensor

from llamita.cache.familiar import FamiliarCache


class Cache(FamiliarCache, ABC):
    """Keys and values per layer, (B, K, S, H) each, and the slots they stand in.

    A pass of T tokens calls `update` once a layer and gets back the keys and values of all slots it may attend to.
    `unrotated`: keys are stored before their rotation, and every pass rotates all of them, at positions that may have
    changed. Rotary types whose frequencies depend on the length do so with any cache. Only then `positions` (B, S) is
    filled.
    """

    def __init__(self, *, unrotated: bool = False) -> None:
        self.unrotated = unrotated
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.positions: Tensor | None = None

    @abstractmethod
    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store k and v (B, K, T, H) of one layer; returns those of all slots to attend to, (B, K, S, H)."""

    def append_positions(self, positions: Tensor) -> Tensor:
        """Store the positions (B, T) of a pass, before its first update; returns those of the visible slots, (B, S)."""
        if self.positions is not None:
            positions = torch.cat((self.positions, positions), dim=1)
        self.positions = positions
        return positions

    def visible_range(self, queries: int) -> tuple[int, int]:
        """The slots that a pass of `queries` tokens attends to (by default all): number of the first, and count."""
        return 0, self.length + queries

    def relative_positions(self, positions: Tensor) -> Tensor:
        """Positions of the text (B, T) as positions among the tokens that the cache holds: mostly the same."""
        return positions

    def mask_columns(self, padding: Tensor, queries: int) -> Tensor:
        """The columns of a mask (B, tokens so far) of the visible slots; slots after its end are hidden."""
        first, keys = self.visible_range(queries)
        padding = padding[:, first : first + keys]
        return torch.nn.functional.pad(padding, (0, keys - padding.shape[1]))

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens seen so far."""

    @property
    def offset(self) -> int | Tensor:
        """`length` as the mask wants it: a tensor where a compiled graph must not depend on its value."""
        return self.length

    @property
    def capacity(self) -> int | None:
        """Tokens that fit, or None without a bound."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        sizes: list[int] = []
        copy(self)._map(lambda x: sizes.append(x.nbytes) or x)
        return sum(sizes)

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; a negative number forgets that many of the last."""

    def resolved_length(self, length: int) -> int:
        """How many tokens `crop(length)` leaves; raises ValueError when that is more than there are."""
        kept = length if length >= 0 else self.length + length
        if not 0 <= kept <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} tokens to {length}: give at most its length")
        return kept

    def reset(self) -> None:
        """Forget everything."""
        self.crop(0)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` (B,) was, as beam search asks."""
        self.select(rows)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; `rows` is an index of any length."""
        self._map(lambda x: x.index_select(0, rows.to(x.device)))

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch `times` times; the copies of a row follow each other."""
        self._map(lambda x: x.repeat_interleave(times, 0))

    def fork(self) -> Self:
        """An independent copy: what happens to one does not reach the other."""
        twin = copy(self)
        twin.keys, twin.values = list(self.keys), list(self.values)
        twin._map(torch.clone)
        return twin

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.keys = [change(k) for k in self.keys]
        self.values = [change(v) for v in self.values]
        self.positions = None if self.positions is None else change(self.positions)

    def __len__(self) -> int:
        """How many layers have stored something."""
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(k, v) of each layer, the filled slots only: (B, K, S, H)."""
        return zip(self.keys, self.values, strict=True)
