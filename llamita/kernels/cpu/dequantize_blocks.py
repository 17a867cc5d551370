"""Packed blocks as weights, in one pass: what the formats' dequantizing kernels share.

Must equal QuantizedBlocks.dequantize of the same codes, rounded to the dtype, to the last bit. Arguments: `Dequantize`.
"""

from collections.abc import Callable

from llamita.kernels.block_format import COLUMNS, TILE, BlockFormat
from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Dequantize, offsets
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Dequantize)
WIDE = 64 * TILE  # bytes of sixteen vectors


@inline
def _symmetric(number: v.Vector, zero: v.Vector, scale: v.Vector, second: v.Vector, is_late: bool) -> v.Vector:
    return v.mul(scale, v.sub(number, zero))


@inline
def _offset(number: v.Vector, zero: v.Vector, scale: v.Vector, minimum: v.Vector, is_late: bool) -> v.Vector:
    return v.sub(v.mul(scale, number), minimum)


@inline
def _two_scales(number: v.Vector, zero: v.Vector, first: v.Vector, second: v.Vector, is_late: bool) -> v.Vector:
    return v.mul(second if is_late else first, v.sub(number, zero))


WEIGHTS: dict[str, Inline] = {"symmetric": _symmetric, "offset": _offset, "two_scales": _two_scales}


@inline
def _rows(near: int, count: int, to: int, stride: int) -> None:
    """Sixteen vectors of columns as rows of 64 bytes, of which the first `count` are written."""
    v.transpose(near, 64, near + WIDE)
    for row in range(count):
        v.store_words(to + row * stride, v.load_words(near + WIDE + 64 * row))


@inline
def _tile(unpack: Inline, weight: Inline, zero: int, dtype: int, tile: int, blocks: int, count: int, out: int) -> None:
    """A tile, of which the first `count` rows are written; sixteen vectors hold 32 columns in bf16, 16 in fp32."""
    near, size = v.stack(), e.size(dtype)
    stride, zeros = size * COLUMNS * blocks, v.to_fp32(v.shl(v.one_words(), zero))
    for block in range(blocks):
        words, first, second = unpack(tile, block)
        to = near
        for group in range(8):
            for i in range(0, 4, 2):
                low = v.to_fp32(v.extract_bits(words[group], 8 * i, 255))
                high = v.to_fp32(v.extract_bits(words[group], 8 * i + 8, 255))
                low = weight(low, zeros, first, second, group >= 4)
                high = weight(high, zeros, first, second, group >= 4)
                if dtype == e.BF16:
                    v.store_words(to, v.pack_bf16(low, high))
                    to += 64
                else:
                    v.store(to, low)
                    v.store(to + 64, high)
                    to += 128
            if dtype == e.FP32 and group == 3:
                _rows(near, count, out + block * size * COLUMNS, stride)
                to = near
        _rows(near, count, out + block * size * COLUMNS + (64 if dtype == e.FP32 else 0), stride)


def dequantize(form: BlockFormat) -> Callable[[int, int], None]:
    """The weights of a matrix of a format. A chunk is a tile."""
    layout, unpack, weight = form.layout, inline(form.unpack), WEIGHTS[form.layout.algebra]
    zero, size = layout.zero_bits, layout.eight_blocks

    def compute(at: int, chunk: int) -> None:
        columns, dtype = v.read(at + AT.columns), v.read(at + AT.dtype)
        blocks, count = columns // COLUMNS, min(TILE, v.read(at + AT.rows) - TILE * chunk)
        tile, out = v.read(at + AT.stream) + chunk * (blocks * size // 8), v.read(at + AT.out)
        if dtype == e.BF16:
            _tile(unpack, weight, zero, e.BF16, tile, blocks, count, out + 2 * TILE * chunk * columns)
        else:
            _tile(unpack, weight, zero, e.FP32, tile, blocks, count, out + 4 * TILE * chunk * columns)

    return compute
