"""A cache for models that see only the last tokens."""

from typing import Self

import torch
from torch import Tensor

from llamita.cache.cache import Cache


class SlidingWindowCache(Cache):
    """Keeps the last `window - 1` tokens: those that the next query still sees, as its window includes itself."""

    def __init__(self, window: int, *, unrotated: bool = False) -> None:
        super().__init__(unrotated=unrotated)
        self.window = window
        self._seen: list[int] = []  # tokens seen by each layer; layers of one pass are one after another

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, H); returns the slots that this pass sees (B, K, S, H), and drops older ones."""
        if layer == len(self.keys):
            self.keys.append(k[:, :, :0])
            self.values.append(v[:, :, :0])
            self._seen.append(0)
        self._seen[layer] += k.shape[2]
        k = torch.cat((self.keys[layer], k), dim=2)
        v = torch.cat((self.values[layer], v), dim=2)
        # A copy, as a view would hold the dropped keys in memory.
        self.keys[layer], self.values[layer] = self._trimmed(k, 2).clone(), self._trimmed(v, 2).clone()
        return k, v

    def append_positions(self, positions: Tensor) -> Tensor:
        """Append the positions (B, T); returns those of the visible slots (B, S)."""
        in_sight = super().append_positions(positions)
        self.positions = self._trimmed(in_sight, 1)
        return in_sight

    @property
    def most_stored(self) -> int:
        """The most tokens kept between passes."""
        return self.window - 1

    def _trimmed(self, x: Tensor, dim: int) -> Tensor:
        """What is kept of the slots along an axis."""
        dropped = max(0, x.shape[dim] - self.most_stored)
        return x.narrow(dim, dropped, x.shape[dim] - dropped)

    def visible_range(self, queries: int) -> tuple[int, int]:
        """The slots still kept, and the new ones."""
        kept = min(self.length, self.most_stored)
        return self.length - kept, kept + queries

    @property
    def length(self) -> int:
        """Tokens seen so far, the dropped ones included."""
        return self._seen[0] if self._seen else 0

    def crop(self, length: int) -> None:
        """Forget the last tokens; raises ValueError when that would need tokens the window has dropped."""
        kept = self.resolved_length(length)
        removed = self.length - kept
        if kept == 0:
            self.keys, self.values, self.positions, self._seen = [], [], None, []
            return
        if removed and self.length > self.most_stored:
            raise ValueError(
                f"this sliding cache has dropped tokens that a crop to {length} needs again: fork() it before, "
                "or use DynamicCache"
            )
        self.keys = [k[:, :, :kept] for k in self.keys]
        self.values = [v[:, :, :kept] for v in self.values]
        self.positions = None if self.positions is None else self.positions[:, :kept]
        self._seen = [kept] * len(self._seen)

    def fork(self) -> Self:
        """An independent copy: what happens to one does not reach the other."""
        twin = super().fork()
        twin._seen = list(self._seen)
        return twin
