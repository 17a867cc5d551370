"""Matrices in GGML's block formats: one class for each layout of the blocks in memory, chosen by device."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Self, cast

import torch
from torch import Tensor

from llamita.kernels import plain_product
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import linear, packed_layout, repack
from llamita.kernels.cpu.runtime import program
from llamita.kernels.cuda import linear as cuda_linear
from llamita.kernels.cuda import planes
from llamita.kernels.quantized_blocks import QuantizedBlocks
from llamita.quant.matrix import Move, QuantizedMatrix, move_bytes


class BlockMatrix(QuantizedMatrix):
    """A matrix in a block format. Each subclass stores the same blocks in its own layout."""

    @classmethod
    @abstractmethod
    def of(cls, blocks: QuantizedBlocks, format_name: str) -> Self:
        """Put blocks into this layout, on the device where they are."""

    @abstractmethod
    def blocks(self) -> QuantizedBlocks:
        """The blocks, as `of` was given them."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (N, K), computed in fp32."""
        return self.blocks().dequantize().to(dtype)

    def raw(self) -> Tensor:
        """The bytes of a GGUF file, uint8 (N, bytes)."""
        return FORMATS[self.format_name].raw(self.blocks())

    def stored_tensors(self) -> tuple[Tensor, ...]:
        """The bytes of a GGUF file, uint8 (N, bytes)."""
        return (self.raw(),)

    def part(self, start: int, stop: int) -> Self:
        """A matrix of the rows from `start` to `stop`."""
        return cast("Self", from_raw(self.format_name, self.raw()[start:stop].contiguous()))

    def joined(self, parts: Sequence[tuple[Tensor, ...]]) -> Self:
        """The matrix of which this is a part, from the bytes of all parts."""
        return cast("Self", from_raw(self.format_name, torch.cat([raw for (raw,) in parts])))

    def _copied(self, move: Move) -> "BlockMatrix":
        blocks = copy(self.blocks())
        for part, tensor in vars(blocks).items():
            if isinstance(tensor, Tensor):
                setattr(blocks, part, move_bytes(tensor, move))
        return from_blocks(blocks, self.format_name)


class PlainBlocks(BlockMatrix):
    """Blocks without a special layout, multiplied in plain torch: for devices and formats without our kernels."""

    def __init__(self, blocks: QuantizedBlocks, format_name: str) -> None:
        super().__init__(format_name, blocks.shape)
        self._blocks = blocks

    @classmethod
    def of(cls, blocks: QuantizedBlocks, format_name: str) -> Self:
        """Keep the blocks as they are."""
        return cls(blocks, format_name)

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self._blocks.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(part.nbytes for part in vars(self._blocks).values() if isinstance(part, Tensor))

    def blocks(self) -> QuantizedBlocks:
        """The blocks, as `of` was given them."""
        return self._blocks

    def kernel_view(self) -> None:
        """None: plain torch reads the blocks."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Round x (..., K) to 8 bits in groups of 32, multiply, add bias (N,): (..., N) in x's dtype."""
        return plain_product.linear(x, self._blocks, bias)

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows by index (...): fp32 (..., K)."""
        return plain_product.rows(self._blocks, index)


class CpuBlocks(BlockMatrix):
    """Blocks in the packed layout of the CPU kernels, sixteen rows in one stream."""

    def __init__(self, packed: packed_layout.Packed) -> None:
        super().__init__(packed.format_name, (packed.rows, packed.columns))
        self.packed = packed

    @classmethod
    def of(cls, blocks: QuantizedBlocks, format_name: str) -> Self:
        """Pack the blocks."""
        return cls(packed_layout.pack(blocks, format_name))

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.packed.stream.device

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.packed.nbytes

    def blocks(self) -> QuantizedBlocks:
        """The blocks, as `of` was given them."""
        return packed_layout.unpack(self.packed)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (N, K), computed in fp32, some tiles at a time."""
        return packed_layout.dequantize(self.packed, dtype)

    def kernel_view(self) -> packed_layout.Packed:
        """The packed weights that the CPU kernels read."""
        return self.packed

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Round x (..., K) to 8 bits in groups of 32, multiply, add bias (N,): (..., N) in x's dtype."""
        return linear.linear(x, self.packed, bias)

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows by index (...): fp32 (..., K)."""
        return packed_layout.rows(self.packed, index)


class GpuBlocks(BlockMatrix):
    """Blocks in the word layout of the Triton kernels, which do not round activations."""

    def __init__(self, words: planes.Planes, format_name: str) -> None:
        super().__init__(format_name, words.shape)
        self.planes = words

    @classmethod
    def of(cls, blocks: QuantizedBlocks, format_name: str) -> Self:
        """Pack the blocks."""
        return cls(planes.pack(blocks), format_name)

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.planes.words.device

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.planes.nbytes

    def blocks(self) -> QuantizedBlocks:
        """The blocks, as `of` was given them."""
        return planes.unpack(self.planes)

    def kernel_view(self) -> planes.Planes:
        """The packed weights that the Triton kernels read."""
        return self.planes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply x (..., K) by the matrix and add bias (N,): (..., N) in x's dtype."""
        return cuda_linear.linear(x, self.planes, bias)

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows by index (...): fp32 (..., K)."""
        return planes.rows(self.planes, index)


LAYOUTS: Mapping[str, type[BlockMatrix]] = {"cpu": CpuBlocks, "cuda": GpuBlocks}


def from_blocks(blocks: QuantizedBlocks, format_name: str) -> BlockMatrix:
    """A matrix of blocks, in the layout of their device's kernels."""
    return layout_on(blocks.codes.device, format_name).of(blocks, format_name)


def from_raw(format_name: str, raw: Tensor, order: Tensor | None = None) -> BlockMatrix:
    """A matrix of the bytes of a GGUF file, uint8 (N, bytes), in the layout of their device's kernels.

    order: int64 (N,), row i of the matrix is row order[i] of the bytes; None keeps the file's order.
    Raises UsageError for bytes of another format.
    """
    block_format = FORMATS[format_name]
    block_format.check(raw)
    if layout_on(raw.device, format_name) is CpuBlocks:
        return CpuBlocks(repack.repack(raw, format_name, order))
    return from_blocks(block_format.codes(raw if order is None else raw[order]), format_name)


def layout_on(device: torch.device, format_name: str) -> type[BlockMatrix]:
    """The layout that a device's kernels read; PlainBlocks if no kernel reads the format."""
    layout = LAYOUTS.get(device.type, PlainBlocks)
    if layout is GpuBlocks and not planes.has_kernels(FORMATS[format_name].layout):
        return PlainBlocks
    return PlainBlocks if layout is CpuBlocks and program.unsupported_reason() is not None else layout
