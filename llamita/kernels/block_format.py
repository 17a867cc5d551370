"""The description of a block format: a GGML type that stores weights in blocks of few bits.

`llamita.kernels.blocks` has a file for each, and the table of them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.kernels.quantized_blocks import QuantizedBlocks

CHUNK = 2**18  # weights quantized at a time: the searches' working tensors of 1 MB stay in the cache
TILE = 16  # rows of a packed matrix that lie side by side, one in each lane of a vector
COLUMNS = 32  # of a packed block, whatever the format's own block is

Unpacked = tuple[tuple[Any, ...], Any, Any]  # vectors: eight words of codes, scales, and minima or further scales


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a packed block holds: 32 columns of sixteen rows.

    bits: of a code. zero: the code that stands for 0, where there is no minimum.
    sub: columns of an integer sub-scale, 0 for none; with them fp16 scales stand before every eight blocks.
    values: the numbers that codes stand for where they are no steps; kernels look them up as bytes.
    scale: the dtype of scales, int8 for exponents of two.
    """

    bits: int
    zero: int = 0
    has_minimum: bool = False
    sub: int = 0
    values: tuple[int, ...] | None = None
    scale: torch.dtype = torch.float16

    @property
    def head(self) -> int:
        """Bytes of fp16 scales before every eight blocks."""
        return TILE * 2 * (1 + self.has_minimum) if self.sub else 0

    @property
    def block(self) -> int:
        """Bytes of a block."""
        own = self.scale.itemsize * (1 + self.has_minimum)
        return TILE * (32 // self.sub + self.has_minimum if self.sub else own) + TILE * 4 * self.bits

    @property
    def eight_blocks(self) -> int:
        """Bytes of eight blocks, which is the period of a tile."""
        return self.head + 8 * self.block

    @property
    def zero_bits(self) -> int:
        """The power of two that stands for 0 among the bytes that kernels multiply."""
        return max(map(abs, self.values)).bit_length() if self.values else max(0, self.zero.bit_length() - 1)

    @property
    def byte_bits(self) -> int:
        """The bits of the bytes that kernels multiply."""
        return (max(self.values) + (1 << self.zero_bits)).bit_length() if self.values else self.bits

    @property
    def table(self) -> tuple[int, int]:
        """The sixteen values as the bytes of two numbers, in which `vector.unpack_values` looks codes up."""
        packed = bytes(value + (1 << self.zero_bits) for value in self.values or ())
        return int.from_bytes(packed[:8], "little", signed=True), int.from_bytes(packed[8:], "little", signed=True)

    def values_on(self, device: torch.device) -> Tensor | None:
        """The values as `QuantizedBlocks` have them, int8 (2**bits,), or None."""
        return None if self.values is None else torch.tensor(self.values, dtype=torch.int8, device=device)

    @property
    def algebra(self) -> str:
        """How codes become weights: "symmetric" around a zero, "offset" by a minimum, or with "two_scales" a block."""
        return "two_scales" if self.sub == 16 else "offset" if self.has_minimum else "symmetric"


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """A row of the table: `nbytes` bytes for every `block` weights of a row, as GGUF files hold them.

    ggml_type: its number there. file_type: what general.file_type says of a file that mostly holds it, None where
    that names a mix of formats. Numbers are ggml's: fit(weights) is quantize_row_..._ref, read and write are exact.

    Kernels are generated from three functions, which are compiled into them and written with the operations that
    `vector` names: unpack(tile, block) loads a packed block; gather(words, source, lane) puts a row's bytes of a block
    from a file in its lane of some words, and put(words, target) writes these as packed blocks.
    """

    name: str
    ggml_type: int
    file_type: int | None
    block: int
    nbytes: int
    layout: Layout
    fit: Callable[[Tensor], QuantizedBlocks]
    read: Callable[[Tensor], QuantizedBlocks]
    write: Callable[[QuantizedBlocks], Tensor]
    unpack: Callable[[int, int], Unpacked]
    gather: Callable[[int, int, int], None]
    put: Callable[[int, int], None]

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.nbytes / self.block

    @property
    def packed_nbytes(self) -> int:
        """Bytes that a block of sixteen rows takes once it is packed."""
        return self.layout.eight_blocks * self.block // (8 * COLUMNS)

    def quantize(self, weight: Tensor) -> Tensor:
        """Weights (N, K) of any float dtype as bytes uint8 (N, K / block * nbytes), those that llama.cpp writes.

        Raises UsageError where K is no multiple of `block`.
        """
        if weight.ndim != 2 or weight.shape[1] % self.block:
            raise UsageError(
                f"{self.name} packs rows of a multiple of {self.block} weights, not {tuple(weight.shape)}: "
                "choose another format for this layer"
            )
        rows = max(1, CHUNK // weight.shape[1])
        with torch.inference_mode(mode=False):  # or no other thread might write to it
            raw = weight.new_empty(len(weight), weight.shape[1] // self.block * self.nbytes, dtype=torch.uint8)
        _each(self._quantize, weight.detach().contiguous().split(rows), raw.split(rows))
        return raw

    def _quantize(self, weight: Tensor, raw: Tensor) -> None:
        raw.copy_(self.write(self.fit(weight)))

    def dequantize(self, raw: Tensor) -> Tensor:
        """Bytes (N, bytes) as weights fp32 (N, K)."""
        return self.codes(raw).dequantize()

    def codes(self, raw: Tensor) -> QuantizedBlocks:
        """Bytes uint8 (N, bytes) taken apart."""
        self.check(raw)
        return self.read(raw)

    def check(self, raw: Tensor) -> None:
        """Raise UsageError for a tensor that cannot be bytes of this format, uint8 (N, bytes)."""
        if raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] % self.nbytes:
            raise UsageError(
                f"{self.name} needs rows of a multiple of {self.nbytes} bytes, not {raw.dtype} {tuple(raw.shape)}: "
                "these are bytes of another format"
            )

    def raw(self, codes: QuantizedBlocks) -> Tensor:
        """The inverse of `codes`."""
        return self.write(codes)


def _each(quantize: Callable[[Tensor, Tensor], None], chunks: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Quantize the chunks in parallel, with as many threads as torch has, one chunk for each.

    The searches are thousands of small steps, and threads that share a step wait for the slowest after each.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(chunks) == 1 or chunks[0].device.type != "cpu":
        for chunk, result in zip(chunks, results, strict=True):
            quantize(chunk, result)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(quantize, chunks, results))  # raises what one of them has raised
    finally:
        torch.set_num_threads(threads)  # it is also what threads yet to come begin with
