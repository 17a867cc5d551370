"""A cache that grows with the sequence."""

import torch
from torch import Tensor

from llamita.cache.cache import Cache


class DynamicCache(Cache):
    """Keeps everything and grows by concatenation; gradients flow through it."""

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, H) to the layer; returns all of its keys and values (B, K, S, H)."""
        if layer == len(self.keys):
            self.keys.append(k.contiguous())
            self.values.append(v.contiguous())
        else:
            self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
            self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        return self.keys[layer], self.values[layer]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.keys[0].shape[2] if self.keys else 0

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; a negative number forgets that many of the last."""
        kept = self.resolved_length(length)
        if kept == 0:
            self.keys, self.values, self.positions = [], [], None
            return
        self.keys = [k[:, :, :kept] for k in self.keys]
        self.values = [v[:, :, :kept] for v in self.values]
        self.positions = None if self.positions is None else self.positions[:, :kept]
