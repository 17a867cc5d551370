"""Keys and values in blocks, which requests hold by their block tables."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from llamita.config import LlamaConfig


class PagedCache:
    """Keys and values of `num_blocks` blocks of `block_size` slots for each layer.

    buffers: (keys, values) of each layer, (1, K, num_blocks * block_size, H). Token i of a text is in slot
    `table[i // block_size] * block_size + i % block_size`. block_size is a power of two. Who holds which block is not
    known here (see `engine.block_pool`).
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        shape = (1, config.num_key_value_heads, num_blocks * block_size, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.buffers = [(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in layers]

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

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block to another block."""
        begin, end = source * self.block_size, target * self.block_size
        for layer in self.buffers:
            for buffer in layer:
                buffer[:, :, end : end + tokens] = buffer[:, :, begin : begin + tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; in this machine's memory without touching it, so that a large cache costs only what is used of it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
