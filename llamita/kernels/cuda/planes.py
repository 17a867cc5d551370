"""Quantized matrices packed for a GPU: words of int32 that one thread loads sixteen bytes of at a time."""

from typing import Self

import torch
from torch import Tensor

from llamita.errors import UnsupportedError
from llamita.kernels.block_format import Layout
from llamita.kernels.quantized_blocks import QuantizedBlocks

GROUP = 32  # columns that share a factor, or two in Q6_K
ROWS_AT_ONCE = 4096  # of packing, so that its int64 values stay small


class Planes:
    """A matrix (N, K) of block-quantized weights: the parts of `QuantizedBlocks`, its codes packed.

    Within a group of 32 columns, word w holds the columns of the same lane: field f of it is column `lanes * f + w`.
    So neighbouring lanes meet neighbouring inputs, and all fields are had by shifts alone.

    words: int32 (N, K / 32 * lanes): fields of 4 bits in 4 lanes, or of 8 bits in 8.
    high: what 5 and 6 bits have above four, fields of one bit as uint8 or of two as int16, (N, K / 32 * 4); else None.
    The rest: as in `QuantizedBlocks`.
    """

    def __init__(
        self,
        words: Tensor,
        high: Tensor | None,
        scale: Tensor,
        minimum: Tensor | None,
        sub_scale: Tensor | None,
        sub_minimum: Tensor | None,
        *,
        bits: int,
        zero: int,
    ) -> None:
        self.words = words
        self.high = high
        self.scale = scale
        self.minimum = minimum
        self.sub_scale = sub_scale
        self.sub_minimum = sub_minimum
        self.bits = bits
        self.zero = zero

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The six parts in the order of the constructor."""
        return self.words, self.high, self.scale, self.minimum, self.sub_scale, self.sub_minimum

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[0], self.words.shape[1] // lanes(self.bits) * GROUP

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.tensors if part is not None)

    def to(self, device: torch.device | str) -> Self:
        """The same planes on another device."""
        parts = (None if part is None else part.to(device) for part in self.tensors)
        return type(self)(*parts, bits=self.bits, zero=self.zero)  # type: ignore[arg-type]

    def codes(self) -> Tensor:
        """The codes (N, K), uint8."""
        across, (width, mask) = lanes(self.bits), _field(self.bits)
        shifts = torch.arange(GROUP // across, device=self.words.device)[:, None]
        grid = (self.words.unflatten(1, (-1, 1, across)) >> (width * shifts).int()) & mask  # (N, K/32, fields, lanes)
        if self.high is not None:
            extra = self.bits - 4
            high = self.high.int().unflatten(1, (-1, 1, across)) >> (extra * shifts).int()
            grid = grid | ((high & (2**extra - 1)) << 4)
        return grid.flatten(1).to(torch.uint8)


def lanes(bits: int) -> int:
    """How many words hold a group's codes (their upper bits apart)."""
    return 8 if bits == 8 else 4


def _field(bits: int) -> tuple[int, int]:
    """Bits from one field of a word to the next, and the mask of one."""
    return (8, 255) if bits == 8 else (4, 15)


def has_kernels(layout: Layout) -> bool:
    """Whether the kernels know a format: codes that are steps of a scale in fp16."""
    return layout.values is None and layout.scale == torch.float16


def pack(codes: QuantizedBlocks) -> Planes:
    """The planes of a matrix taken apart; `unpack` is the exact way back.

    Raises UnsupportedError for codes of a table of values, or scales that are powers of two.
    """
    if codes.values is not None or codes.scale.dtype != torch.float16:
        raise UnsupportedError(
            "the kernels for GPUs know only codes that are steps of an fp16 scale, and this format has a table of "
            "values: quantize to q4_0 or q4_k instead"
        )
    parts = [_words(part, codes.bits) for part in codes.codes.split(ROWS_AT_ONCE)]
    words, high = (
        None if pieces[0] is None else torch.cat(pieces)  # type: ignore[arg-type]
        for pieces in zip(*parts, strict=True)
    )
    assert words is not None
    factors = (codes.scale, codes.minimum, codes.sub_scale, codes.sub_minimum)
    kept = (None if factor is None else factor.contiguous() for factor in factors)
    return Planes(words, high, *kept, bits=codes.bits, zero=codes.zero)  # type: ignore[arg-type]


def unpack(planes: Planes) -> QuantizedBlocks:
    """The parts of a packed matrix."""
    return QuantizedBlocks(
        planes.codes(),
        bits=planes.bits,
        zero=planes.zero,
        scale=planes.scale,
        minimum=planes.minimum,
        sub_scale=planes.sub_scale,
        sub_minimum=planes.sub_minimum,
    )


def rows(planes: Planes, index: Tensor) -> Tensor:
    """The weights fp32 (..., K) of the rows that index (...) names."""
    chosen = (None if part is None else part[index.reshape(-1)] for part in planes.tensors)
    some = Planes(*chosen, bits=planes.bits, zero=planes.zero)  # type: ignore[arg-type]
    return unpack(some).dequantize().view(*index.shape, -1)


def _words(codes: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """QuantizedBlocks (N, K) as words (N, K / 32 * lanes), and the bits above four of 5- and 6-bit codes."""
    across, (width, mask) = lanes(bits), _field(bits)
    grid = codes.unflatten(1, (-1, GROUP // across, across)).long()  # (N, K/32, fields, lanes)
    fields = torch.arange(GROUP // across, device=codes.device)[:, None]
    words = _signed(((grid & mask) << (width * fields)).sum(2), torch.int32)
    if bits not in (5, 6):
        return words, None
    extra = bits - 4
    high = ((grid >> 4) << (extra * fields)).sum(2)
    return words, high.flatten(1).to(torch.uint8) if bits == 5 else _signed(high, torch.int16)


def _signed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Unsigned numbers (N, G, lanes) as the signed ones of the same bits, (N, G * lanes)."""
    limit = torch.iinfo(dtype).max + 1
    return torch.where(numbers >= limit, numbers - 2 * limit, numbers).to(dtype).flatten(1)
