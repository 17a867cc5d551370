"""A cache that grows in place."""

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache

ROOM = 256  # free slots that a layer begins with


class GrowingCache(DynamicCache):
    """Keeps everything; a step writes its own keys and values and copies no others. No gradients flow through it.

    A layer's tensors are views of buffers (B, K, capacity, H) with room to spare, which double when they are full. The
    backends see the same numbers as in a DynamicCache, but strided: some then add in another order.
    `rooms` are the buffers, for kernels that write keys and values themselves; the list is a new one when one moves.
    """

    def __init__(self, *, unrotated: bool = False) -> None:
        self.rooms: list[tuple[Tensor, Tensor]] = []
        self._filled: list[int] = []  # tokens of each layer
        self._capacity, self._measured = 0, self.rooms  # what every layer has room for, and when it was looked up
        super().__init__(unrotated=unrotated)

    @property
    def keys(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The filled slots of each layer's keys, (B, K, S, H); what is put here is a buffer without room to spare."""
        return [keys[:, :, :filled] for (keys, _), filled in zip(self.rooms, self._filled, strict=True)]

    @keys.setter
    def keys(self, layers: list[Tensor]) -> None:
        values = [values for _, values in self.rooms]
        self.rooms = [(k, values[i] if i < len(values) else k) for i, k in enumerate(layers)]
        self._filled = [k.shape[2] for k in layers]

    @property
    def values(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The filled slots of each layer's values; set after the keys."""
        return [values[:, :, :filled] for (_, values), filled in zip(self.rooms, self._filled, strict=True)]

    @values.setter
    def values(self, layers: list[Tensor]) -> None:
        self.rooms = [(keys, v) for (keys, _), v in zip(self.rooms, layers, strict=True)]

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write k and v (B, K, T, H) behind the others; returns all of the layer, (B, K, S, H)."""
        if layer == len(self.rooms):
            self.rooms = [*self.rooms, (k.detach()[:, :, :0], v.detach()[:, :, :0])]
            self._filled = [*self._filled, 0]
        start = self._filled[layer]
        end = start + k.shape[2]
        if any(room.shape[2] < end or not room.is_contiguous() for room in self.rooms[layer]):
            self._move(layer, 2 * end if start else end + ROOM)
        self._filled[layer] = end
        keys, values = (room[:, :, :end] for room in self.rooms[layer])
        keys[:, :, start:] = k.detach()
        values[:, :, start:] = v.detach()
        return keys, values

    def begin(self, layers: int, *, batch: int, heads: int, width: int, dtype: torch.dtype) -> None:
        """Make room in an empty cache, for the CPU's kernels that will write into it."""
        shape = (batch, heads, ROOM, width)
        keys, values = ([torch.zeros(shape, dtype=dtype, device="cpu") for _ in range(layers)] for _ in "kv")
        self.rooms = list(zip(keys, values, strict=True))
        self._filled = [0] * layers

    def reserve(self, tokens: int, *, spare: int = 0) -> int:
        """Let every layer have so many more slots, yet to be written in its `rooms`; returns the number of the first.

        spare: slots behind them that a kernel may read.
        """
        start = self._filled[0]
        needed = start + tokens + spare
        if needed > self._capacity or self._measured is not self.rooms:
            largest = max(keys.shape[2] for keys, _ in self.rooms)
            self._capacity = largest if needed <= largest else 2 * needed  # the same for all layers
            for layer in range(len(self.rooms)):
                self._move(layer, self._capacity)
            self._measured = self.rooms
        self._filled = [start + tokens] * len(self._filled)
        return start

    def _move(self, layer: int, capacity: int) -> None:
        """Put a layer's keys and values into buffers of this capacity, where they are not in such already."""
        if all(room.shape[2] == capacity and room.is_contiguous() for room in self.rooms[layer]):
            return
        filled, moved = self._filled[layer], []
        for room in self.rooms[layer]:
            batch, heads, _, width = room.shape
            moved.append(room.new_zeros(batch, heads, capacity, width))
            moved[-1][:, :, :filled] = room[:, :, :filled]
        self.rooms = [*self.rooms[:layer], (moved[0], moved[1]), *self.rooms[layer + 1 :]]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self._filled[0] if self._filled else 0

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens, keeping the room."""
        kept = self.kept(length)
        if kept == 0:
            self.rooms, self._filled, self.positions = [], [], None
            return
        self._filled = [min(kept, filled) for filled in self._filled]
        self.positions = None if self.positions is None else self.positions[:, :kept]

    def __len__(self) -> int:
        """How many layers have stored something."""
        return len(self.rooms)
