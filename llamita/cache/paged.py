"""Keys and values in blocks, which requests hold by their block tables."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.kernels.cpu.constants import TILE


class PagedCache:
    """Keys and values of `num_blocks` blocks of `block_size` slots for each layer.

    buffers: (keys, values) of each layer, (num_blocks, K, block_size, H). Token i of a text is in slot
    `table[i // block_size] * block_size + i % block_size`. block_size is a power of two. Where kernels may read the
    cache, and a block has room for tiles of keys, its keys are in these (see `kernels.cpu.key_tiles`): `is_tiled`. Who
    holds which block is not known here (see `engine.block_pool`).
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.num_blocks, self.block_size, self.device = num_blocks, block_size, torch.device(device)
        heads, width = config.num_key_value_heads, config.head_dim
        shape = (num_blocks, heads, block_size, width)
        layers = range(config.num_hidden_layers)
        self.buffers = [(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in layers]
        columns = max(1, 4 // dtype.itemsize)  # of a word of a tile
        self.is_tiled = self.device.type == "cpu" and block_size % TILE == 0 and width % columns == 0
        self._step, columns = (TILE, columns) if self.is_tiled else (1, 1)
        tiles = num_blocks, heads, block_size // self._step, width // columns, self._step, columns
        self._views = [
            (keys.view(tiles).permute(0, 2, 4, 1, 3, 5), values.transpose(1, 2)) for keys, values in self.buffers
        ]

    @staticmethod
    def block_bytes(config: LlamaConfig, *, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block, all layers together."""
        slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
        return slot * block_size

    def slots(self, table: Sequence[int], start: int, end: int) -> Tensor:
        """The slots (end - start,) of a text's tokens from `start` on."""
        first = start // self.block_size
        blocks = torch.tensor(table[first : -(-end // self.block_size)], dtype=torch.int64, device="cpu")
        slots = blocks[:, None] * self.block_size + torch.arange(self.block_size, device="cpu")
        return slots.flatten()[start - first * self.block_size : end - first * self.block_size]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (K, n, H) in slots (n,)."""
        into, beside = self._views[layer]
        into[self._lanes(slots)] = keys.transpose(0, 1).to(into.dtype).unflatten(-1, into.shape[-2:])
        beside[slots // self.block_size, slots % self.block_size] = values.transpose(0, 1).to(beside.dtype)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values (K, n, H) of slots (n,)."""
        keys, values = self._views[layer]
        values = values[slots // self.block_size, slots % self.block_size]
        return keys[self._lanes(slots)].flatten(-2).transpose(0, 1), values.transpose(0, 1)

    def _lanes(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of slots: the block, the tile in it, and the lane of that."""
        inside = slots % self.block_size
        return slots // self.block_size, inside // self._step, inside % self._step

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block to another block, and what else is in their tiles."""
        end = -(-tokens // self._step) * self._step
        for layer in self.buffers:
            for buffer in layer:
                buffer[target, :, :end] = buffer[source, :, :end]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; in this machine's memory without touching it, so that a large cache costs only what is used of it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
