"""The inner part of `gemm_quantized` for codes of 8 and 4 bits: blocks are unpacked in registers, for four rows of x.

Must equal what `gemv_quantized` makes of each row alone, to the last bit. `gemm_panels` writes unpacked blocks, which
few rows do not pay for. Here none is written: while two ports of the processor multiply, others unpack. Codes of 5 and
6 bits, and those that are looked up, take too many operations for that. Registers must hold eight dot products and as
many sums. A panel of blocks stays in the first-level cache for all rows; between panels the sums are in memory.
"""

from llamita.kernels.block_format import BlockFormat, Layout
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK, ROWS
from llamita.kernels.cpu.gemm_panels import SUMS, add_offset, add_symmetric, prefetch, prefetch_rows
from llamita.kernels.cpu.gemm_tiles import load_four, store_four
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 8  # of a panel
# Blocks between a panel and what is prefetched with it, into the second-level cache: products waited for memory where
# it was nearer, or went to the first-level cache.
AHEAD = 8

Eight = tuple[v.Vector, ...]  # of four rows of x, first of the one tile, then of the other
Words = tuple[v.Vector, ...]  # of a block
Scales = tuple[v.Vector, v.Vector, v.Vector, v.Vector]  # of both tiles, then the second ones
Addresses = tuple[int, int, int, int]  # of four rows of x


@inline
def _add_word(dots: Eight, low: v.Vector, high: v.Vector, x: Addresses, column: int) -> Eight:
    """Four columns from `column` on: a word of both tiles times four rows of x."""
    a, b, c, d, e, f, g, h = dots
    one, two = v.broadcast_word(x[0] + column), v.broadcast_word(x[1] + column)
    a, e = v.dot_u8s8(a, low, one), v.dot_u8s8(e, high, one)
    b, f = v.dot_u8s8(b, low, two), v.dot_u8s8(f, high, two)
    one, two = v.broadcast_word(x[2] + column), v.broadcast_word(x[3] + column)
    c, g = v.dot_u8s8(c, low, one), v.dot_u8s8(g, high, one)
    d, h = v.dot_u8s8(d, low, two), v.dot_u8s8(h, high, two)
    return a, b, c, d, e, f, g, h


@inline
def _add_words(dots: Eight, low: Words, high: Words, x: Addresses) -> Eight:
    """Thirty-two columns; of codes of 4 bits two words come from one."""
    dots = _add_word(_add_word(dots, low[0], high[0], x, 0), low[4], high[4], x, 16)
    dots = _add_word(_add_word(dots, low[1], high[1], x, 4), low[5], high[5], x, 20)
    dots = _add_word(_add_word(dots, low[2], high[2], x, 8), low[6], high[6], x, 24)
    return _add_word(_add_word(dots, low[3], high[3], x, 12), low[7], high[7], x, 28)


@inline
def _begin(x: Addresses, zero: int) -> Eight:
    """What dot products begin with, where codes are around two to the power `zero`."""
    a, b = v.shl(v.broadcast_word(x[0] + 44), zero), v.shl(v.broadcast_word(x[1] + 44), zero)
    c, d = v.shl(v.broadcast_word(x[2] + 44), zero), v.shl(v.broadcast_word(x[3] + 44), zero)
    return a, b, c, d, a, b, c, d


@inline
def _nothing() -> Eight:
    zero = v.zero_words()
    return zero, zero, zero, zero, zero, zero, zero, zero


@inline
def _no_sums() -> Eight:
    zero = v.zero_fp32()
    return zero, zero, zero, zero, zero, zero, zero, zero


def _adder(add: Inline) -> Inline:
    @inline
    def add_eight(sums: Eight, dots: Eight, x: Addresses, scales: Scales) -> Eight:
        """The dot products of a block to the sums."""
        one, two, first, second = scales
        return (
            add(dots[0], dots[0], x[0], one, first, sums[0]), add(dots[1], dots[1], x[1], one, first, sums[1]),
            add(dots[2], dots[2], x[2], one, first, sums[2]), add(dots[3], dots[3], x[3], one, first, sums[3]),
            add(dots[4], dots[4], x[0], two, second, sums[4]), add(dots[5], dots[5], x[1], two, second, sums[5]),
            add(dots[6], dots[6], x[2], two, second, sums[6]), add(dots[7], dots[7], x[3], two, second, sums[7]),
        )  # fmt: skip

    return add_eight


_add_symmetric, _add_offset = _adder(add_symmetric), _adder(add_offset)


@inline
def _symmetric(sums: Eight, low: Words, high: Words, scales: Scales, zero: int, x: Addresses) -> Eight:
    dots = _add_words(_begin(x, zero), low, high, x)
    return _add_symmetric(sums, dots, x, scales)


@inline
def _offset(sums: Eight, low: Words, high: Words, scales: Scales, zero: int, x: Addresses) -> Eight:
    dots = _add_words(_nothing(), low, high, x)
    return _add_offset(sums, dots, x, scales)


# Add a block of two tiles times four rows of x to the sums: by the algebra of a format's layout.
BLOCK: dict[str, Inline] = {"symmetric": _symmetric, "offset": _offset}


@inline
def _load(at: int) -> Eight:
    return (
        v.load(at), v.load(at + 128), v.load(at + 256), v.load(at + 384),
        v.load(at + 64), v.load(at + 192), v.load(at + 320), v.load(at + 448),
    )  # fmt: skip


@inline
def _store(at: int, sums: Eight) -> None:
    for row in range(4):
        v.store(at + 128 * row, sums[row])
        v.store(at + 128 * row + 64, sums[row + 4])


@inline
def _unpack_scales(unpack: Inline, tiles: tuple[int, int], block: int) -> Scales:
    low, high = unpack(tiles[0], block), unpack(tiles[1], block)
    return low[1], high[1], low[2], high[2]


@inline
def _four_rows(x: int, number: int, lines: int, line: int) -> Addresses:
    """The addresses of a group's rows of x. The last rows may be in the group before too; fewer than four, repeated."""
    first, last = max(0, min(ROWS * number, lines - ROWS)), lines - 1
    return (
        x + first * line, x + min(last, first + 1) * line, x + min(last, first + 2) * line,
        x + min(last, first + 3) * line,
    )  # fmt: skip


def _scales_of(form: BlockFormat) -> tuple[Inline, Inline]:
    """How scales are made ready for a panel, and got for a block: those of K-quants are products, which are kept."""
    unpack = inline(form.unpack)

    @inline
    def keep(tiles: tuple[int, int], first: int, count: int, at: int) -> None:
        for i in range(count):
            store_four(at + 256 * i, _unpack_scales(unpack, tiles, first + i))

    @inline
    def kept(tiles: tuple[int, int], block: int, at: int) -> Scales:
        return load_four(at)

    @inline
    def keep_none(tiles: tuple[int, int], first: int, count: int, at: int) -> None:
        pass

    @inline
    def unpacked(tiles: tuple[int, int], block: int, at: int) -> Scales:
        return _unpack_scales(unpack, tiles, block)

    return (keep, kept) if form.layout.sub else (keep_none, unpacked)


def suits(layout: Layout) -> bool:
    """Whether blocks are multiplied this way."""
    return v.instructions().tiles == 2 and layout.bits in (4, 8) and layout.values is None


def multiplier(form: BlockFormat) -> Inline:
    """The product of two tiles of a format, as `gemm_quantized.multiplier` describes it."""
    unpack, add_block, (keep, scales_of) = inline(form.unpack), BLOCK[form.layout.algebra], _scales_of(form)
    zero, size = form.layout.zero_bits, form.layout.eight_blocks // 8

    @inline
    def panel(
        tiles: tuple[int, int], first: int, count: int, its: Addresses, sums: int, at: int, ahead: tuple[int, int],
        room: int,
    ) -> None:  # fmt: skip
        """`count` blocks from `first` on times four rows of x; with each, `room` bytes are prefetched at `ahead`."""
        total = _load(sums) if first else _no_sums()
        for i in range(count):
            prefetch(ahead, i * room, room)
            low, high = unpack(tiles[0], first + i), unpack(tiles[1], first + i)
            scales = scales_of(tiles, first + i, at + 256 * i)
            total = add_block(total, low[0], high[0], scales, zero, its)
            its = (its[0] + Q8_BLOCK, its[1] + Q8_BLOCK, its[2] + Q8_BLOCK, its[3] + Q8_BLOCK)
        _store(sums, total)

    @inline
    def multiply(
        tiles: tuple[int, int], skipped: int, x: int, lines: int, blocks: int, out: int, stride: int, at: int
    ) -> int:  # fmt: skip
        groups, sums = -(-lines // ROWS), at + SUMS
        piece = -(-size // (64 * groups)) * 64
        for first in range(0, blocks, BLOCKS):
            count = min(BLOCKS, blocks - first)
            after = first + count + AHEAD
            later = after * size + (skipped if after >= blocks else 0)
            keep(tiles, first, count, at)
            for number in range(groups):
                done = number * count * piece
                if stride and first + count == blocks:
                    prefetch_rows(out + ROWS * number * stride, stride, ROWS)
                panel(
                    tiles, first, count, _four_rows(x + first * Q8_BLOCK, number, lines, blocks * Q8_BLOCK),
                    sums + 128 * ROWS * number, at, (tiles[0] + later + done, tiles[1] + later + done),
                    piece if done < BLOCKS * size else 0,
                )  # fmt: skip
        return sums

    return multiply
