"""A cache of fixed size, allocated once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.config import LlamaConfig
from llamita.errors import UsageError


class StaticCache(Cache):
    """Buffers for `capacity` tokens, allocated at once and written in place: shapes and addresses never change.

    So a compiled decode step or a captured CUDA graph keeps working. The length lives in a tensor for the same
    reason. Gradients do not flow through it.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        unrotated: bool = False,
    ) -> None:
        super().__init__(unrotated=unrotated)
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        if unrotated or config.rope_parameters.depends_on_length:
            self.positions = torch.zeros(batch, capacity, dtype=torch.long, device=device)
        self._filled = torch.zeros(len(self.keys), dtype=torch.long, device=device)  # per layer

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, H) to the filled slots; returns all slots (B, K, capacity, H).

        Raises UsageError for another number of heads than it was made for.
        """
        if k.shape[1] != self.keys[layer].shape[1]:
            raise UsageError(
                f"this StaticCache has {self.keys[layer].shape[1]} heads and the model's pass {k.shape[1]}: make it by "
                "model.cache_config"
            )
        slots = self._filled[layer] + torch.arange(k.shape[2], device=k.device)
        self.keys[layer].index_copy_(2, slots, k.detach())
        self.values[layer].index_copy_(2, slots, v.detach())
        self._filled[layer] += k.shape[2]
        return self.keys[layer], self.values[layer]

    def append_positions(self, positions: Tensor) -> Tensor:
        """Append the positions (B, T) to the filled slots; returns those of all slots (B, capacity).

        Raises ValueError where it was made without room for positions.
        """
        if self.positions is None:
            raise ValueError(
                "this StaticCache was made for a rotary type of fixed frequencies: pass it the model's config"
            )
        slots = self._filled[0] + torch.arange(positions.shape[1], device=positions.device)
        self.positions.index_copy_(1, slots, positions.expand(self.positions.shape[0], -1))
        return self.positions

    def visible_range(self, queries: int) -> tuple[int, int]:
        """All slots; raises ValueError when the tokens do not fit (not checked inside a compiled graph)."""
        capacity = self.keys[0].shape[2]
        if not torch.compiler.is_compiling() and self._filled.device.type == "cpu" and self.length + queries > capacity:
            raise ValueError(
                f"{self.length} cached and {queries} new tokens do not fit a StaticCache of {capacity}: make it larger"
            )
        return 0, capacity

    @property
    def length(self) -> int:
        """Tokens seen so far (read from the device)."""
        return int(self._filled[0])

    @property
    def offset(self) -> Tensor:
        """The length as a tensor (), a copy: `update` moves the count on in place."""
        return self._filled[0].clone()

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys[0].shape[2]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; the buffers stay."""
        self._filled.fill_(self.resolved_length(length))

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` (B,) was, in place."""
        for x in (*self.keys, *self.values, *([] if self.positions is None else [self.positions])):
            x.copy_(x.index_select(0, rows.to(x.device)))

    def fork(self) -> "StaticCache":
        """An independent copy: what happens to one does not reach the other."""
        twin = super().fork()
        twin._filled = self._filled.clone()
        return twin

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(k, v) of each layer, the filled slots only: (B, K, S, H)."""
        for k, v in super().__iter__():
            yield k[:, :, : self.length], v[:, :, : self.length]
