"""A cache in the CPU's memory for models on another device."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache

Pair = tuple[Tensor, Tensor]


class OffloadedCache(DynamicCache):
    """Keeps keys and values on the CPU; the device holds those of the running layer, and of the next as they arrive.

    Every pass copies the whole cache to the device once: long texts fit, and steps wait for the bus. For a model on
    the CPU it works as a DynamicCache.
    """

    def __init__(self, *, unrotated: bool = False) -> None:
        super().__init__(unrotated=unrotated)
        self._ahead: dict[int, Pair] = {}  # layer -> its keys and values, being copied to the device
        self._stream: torch.cuda.Stream | None = None  # of the copies, so that they overlap with the layers

    def update(self, k: Tensor, v: Tensor, layer: int) -> Pair:
        """Append k and v (B, K, T, H) to the layer; returns all of its keys and values (B, K, S, H) on their device."""
        if k.device.type == "cpu":
            return super().update(k, v, layer)
        if layer == len(self.keys):
            self._store(k, v, layer)
            return k, v
        past = self._arrived(layer, k.device)
        if layer + 1 < len(self.keys):
            self._fetch(layer + 1, k.device)
        self._store(k, v, layer)
        return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)

    def _store(self, k: Tensor, v: Tensor, layer: int) -> None:
        super().update(k.detach().cpu(), v.detach().cpu(), layer)
        if k.is_cuda:  # only pinned memory is copied without holding up the CPU
            self.keys[layer], self.values[layer] = self.keys[layer].pin_memory(), self.values[layer].pin_memory()

    def _fetch(self, layer: int, device: torch.device) -> None:
        """Begin to copy a layer to the device."""
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):  # of None: nothing
            self._ahead[layer] = (
                self.keys[layer].to(device, non_blocking=True),
                self.values[layer].to(device, non_blocking=True),
            )

    def _arrived(self, layer: int, device: torch.device) -> Pair:
        """A layer on the device; later work there waits for its copy."""
        if layer not in self._ahead:
            self._fetch(layer, device)
        pair = self._ahead.pop(layer)
        if self._stream is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(self._stream)
            for x in pair:
                x.record_stream(current)
        return pair

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; a negative number forgets that many of the last."""
        super().crop(length)
        self._ahead = {}

    def fork(self) -> Self:
        """An independent copy: what happens to one does not reach the other."""
        twin = super().fork()
        twin._ahead, twin._stream = {}, None
        return twin

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._map(change)
        self._ahead = {}
