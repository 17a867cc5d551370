"""A cache that grows in place."""

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache

FIRST_CAPACITY = 256  # slots that a layer begins with


class GrowingCache(DynamicCache):
    """Keeps everything; a step writes its own keys and values and copies no others. No gradients flow through it.

    A layer's tensors are views of larger buffers (B, K, capacity, H), which double when they are full. The
    backends see the same numbers as in a DynamicCache, but strided: some then add in another order.
    `buffers`: for kernels that write keys and values themselves; the list is a new one when a buffer moves.
    run: None, or what passes have in common between which nobody else changes the model.
    """

    def __init__(self, *, unrotated: bool = False) -> None:
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.run: object | None = None
        self._filled: list[int] = []  # tokens of each layer
        self._capacity, self._measured = 0, self.buffers  # tokens that fit every layer, and the list it was read from
        super().__init__(unrotated=unrotated)

    @property
    def keys(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The filled slots of each layer's keys, (B, K, S, H); a tensor that is set becomes a full buffer."""
        return [keys[:, :, :filled] for (keys, _), filled in zip(self.buffers, self._filled, strict=True)]

    @keys.setter
    def keys(self, layers: list[Tensor]) -> None:
        values = [values for _, values in self.buffers]
        self.buffers = [(k, values[i] if i < len(values) else k) for i, k in enumerate(layers)]
        self._filled = [k.shape[2] for k in layers]

    @property
    def values(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The filled slots of each layer's values; set after the keys."""
        return [values[:, :, :filled] for (_, values), filled in zip(self.buffers, self._filled, strict=True)]

    @values.setter
    def values(self, layers: list[Tensor]) -> None:
        self.buffers = [(keys, v) for (keys, _), v in zip(self.buffers, layers, strict=True)]

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, H); returns all keys and values of the layer, (B, K, S, H)."""
        if layer == len(self.buffers):
            self.buffers = [*self.buffers, (k.detach()[:, :, :0], v.detach()[:, :, :0])]
            self._filled = [*self._filled, 0]
        start = self._filled[layer]
        end = start + k.shape[2]
        if any(buffer.shape[2] < end or not buffer.is_contiguous() for buffer in self.buffers[layer]):
            self._move(layer, 2 * end if start else end + FIRST_CAPACITY)
        self._filled[layer] = end
        keys, values = (buffer[:, :, :end] for buffer in self.buffers[layer])
        keys[:, :, start:] = k.detach()
        values[:, :, start:] = v.detach()
        return keys, values

    def begin(self, layers: int, *, batch: int, heads: int, width: int, dtype: torch.dtype) -> None:
        """Allocate the buffers of an empty cache, for CPU kernels that write into them."""
        shape = (batch, heads, FIRST_CAPACITY, width)
        keys, values = ([torch.zeros(shape, dtype=dtype, device="cpu") for _ in range(layers)] for _ in "kv")
        self.buffers = list(zip(keys, values, strict=True))
        self._filled = [0] * layers

    def reserve(self, tokens: int, *, spare: int = 0) -> int:
        """Extend every layer by `tokens` slots, which the caller writes in `buffers`; returns the number of the first.

        spare: further slots that a kernel may read.
        """
        start = self._filled[0]
        needed = start + tokens + spare
        if needed > self._capacity or self._measured is not self.buffers:
            largest = max(keys.shape[2] for keys, _ in self.buffers)
            self._capacity = largest if needed <= largest else 2 * needed  # the same for all layers
            for layer in range(len(self.buffers)):
                self._move(layer, self._capacity)
            self._measured = self.buffers
        self._filled = [start + tokens] * len(self._filled)
        return start

    def _move(self, layer: int, capacity: int) -> None:
        """Copy a layer's keys and values into buffers of this capacity, unless they have it already."""
        if all(buffer.shape[2] == capacity and buffer.is_contiguous() for buffer in self.buffers[layer]):
            return
        filled, moved = self._filled[layer], []
        for buffer in self.buffers[layer]:
            batch, heads, _, width = buffer.shape
            moved.append(buffer.new_zeros(batch, heads, capacity, width))
            moved[-1][:, :, :filled] = buffer[:, :, :filled]
        self.buffers = [*self.buffers[:layer], (moved[0], moved[1]), *self.buffers[layer + 1 :]]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self._filled[0] if self._filled else 0

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens, keeping the buffers."""
        kept = self.resolved_length(length)
        if kept == 0:
            self.buffers, self._filled, self.positions = [], [], None
            return
        self._filled = [min(kept, filled) for filled in self._filled]
        self.positions = None if self.positions is None else self.positions[:, :kept]

    def __len__(self) -> int:
        """How many layers have stored something."""
        return len(self.buffers)
