"""The inner part of `gemm_quantized` for codes of 8 and 4 bits: blocks are unpacked in registers, for four rows of x.

Must equal what `gemv_quantized` makes of each row alone, to the last bit. `gemm_panels` writes unpacked blocks, which
few rows do not pay for. Here none is written: while two ports of the processor multiply, others unpack. Codes of 5 and
6 bits, and those that are looked up, take too many operations for that. Registers must hold eight dot products and as
many sums. A panel of blocks stays in the first-level cache for all rows; between panels the sums are in memory. Up to
three rows that are left after the last four are multiplied by themselves, as two and one.
"""

from typing import NamedTuple

from llamita.kernels.block_format import BlockFormat, Layout
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK, ROWS
from llamita.kernels.cpu.gemm_panels import (
    SUMS,
    add_offset,
    add_symmetric,
    load_pair,
    prefetch,
    prefetch_rows,
    store_pair,
)
from llamita.kernels.cpu.gemm_tiles import load_four, store_four
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 8  # of a panel
# Blocks between a panel and what is prefetched with it, into the second-level cache: products waited for memory where
# it was nearer, or went to the first-level cache.
AHEAD = 8

Words = tuple[v.Vector, ...]  # of a block
Scales = tuple[v.Vector, v.Vector, v.Vector, v.Vector]  # of both tiles, then the second ones
Pair = tuple[v.Vector, v.Vector]  # of a row of x, of both tiles


@inline
def _begin(x: int, zero: int) -> Pair:
    """What dot products begin with, where codes are around two to the power `zero`."""
    below = v.shl(v.broadcast_word(x + 44), zero)
    return below, below


@inline
def _begin_with_nothing(x: int, zero: int) -> Pair:
    return v.zero_words(), v.zero_words()


@inline
def _add_word(dots: Pair, low: v.Vector, high: v.Vector, x: int, column: int) -> Pair:
    """Four columns from `column` on: a word of both tiles times a row of x.

    One row after the other: where all rows had the first tile's before, prefetching came too late for few rows.
    """
    word = v.broadcast_word(x + column)
    return v.dot_u8s8(dots[0], low, word), v.dot_u8s8(dots[1], high, word)


def _adder(add: Inline) -> Inline:
    @inline
    def add_pair(sums: Pair, dots: Pair, x: int, scales: Scales) -> Pair:
        """The dot products of a block to the sums."""
        one, two, first, second = scales
        return add(dots[0], dots[0], x, one, first, sums[0]), add(dots[1], dots[1], x, two, second, sums[1])

    return add_pair


@inline
def _no_sums() -> Pair:
    return v.zero_fp32(), v.zero_fp32()


@inline
def _address(x: int, line: int, last: int) -> int:
    return min(x, last)


@inline
def _next(x: int) -> int:
    return x + Q8_BLOCK


class _Rows(NamedTuple):
    """What is done with one row of x, or with two or four, which are pairs of these."""

    size: int
    addresses: Inline
    next: Inline
    begin: Inline
    add_word: Inline
    add: Inline
    no_sums: Inline
    load: Inline
    store: Inline


def _one_row(algebra: str) -> _Rows:
    begin, add = ALGEBRA[algebra]
    return _Rows(1, _address, _next, begin, _add_word, add, _no_sums, load_pair, store_pair)


def _twice(rows: _Rows) -> _Rows:
    """The same with twice as many rows of x, the ones after the others."""
    half, addresses, following, begin, add_word, add, no_sums, load, store = rows

    @inline
    def addresses_of_both(x, line, last):
        return addresses(x, line, last), addresses(x + half * line, line, last)

    @inline
    def next_of_both(x):
        return following(x[0]), following(x[1])

    @inline
    def begin_both(x, zero):
        return begin(x[0], zero), begin(x[1], zero)

    @inline
    def add_word_to_both(dots, low, high, x, column):
        return add_word(dots[0], low, high, x[0], column), add_word(dots[1], low, high, x[1], column)

    @inline
    def add_both(sums, dots, x, scales):
        return add(sums[0], dots[0], x[0], scales), add(sums[1], dots[1], x[1], scales)

    @inline
    def no_sums_of_both():
        return no_sums(), no_sums()

    @inline
    def load_both(at):
        return load(at), load(at + 128 * half)

    @inline
    def store_both(at, sums):
        store(at, sums[0])
        store(at + 128 * half, sums[1])

    return _Rows(
        2 * half, addresses_of_both, next_of_both, begin_both, add_word_to_both, add_both, no_sums_of_both, load_both,
        store_both,
    )  # fmt: skip


# By the algebra of a format's layout: what dot products begin with, and how they are added to the sums.
ALGEBRA: dict[str, tuple[Inline, Inline]] = {
    "symmetric": (_begin, _adder(add_symmetric)),
    "offset": (_begin_with_nothing, _adder(add_offset)),
}


@inline
def _unpack_scales(unpack: Inline, tiles: tuple[int, int], block: int) -> Scales:
    low, high = unpack(tiles[0], block), unpack(tiles[1], block)
    return low[1], high[1], low[2], high[2]


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


def _panel(form: BlockFormat, rows: _Rows, scales_of: Inline) -> Inline:
    unpack, zero = inline(form.unpack), form.layout.zero_bits
    _, addresses, following, begin, add_word, add, no_sums, load, store = rows

    @inline
    def add_words(dots, low: Words, high: Words, x):
        """Thirty-two columns; of codes of 4 bits two words come from one."""
        dots = add_word(add_word(dots, low[0], high[0], x, 0), low[4], high[4], x, 16)
        dots = add_word(add_word(dots, low[1], high[1], x, 4), low[5], high[5], x, 20)
        dots = add_word(add_word(dots, low[2], high[2], x, 8), low[6], high[6], x, 24)
        return add_word(add_word(dots, low[3], high[3], x, 12), low[7], high[7], x, 28)

    @inline
    def panel(
        tiles: tuple[int, int], first: int, count: int, rows: tuple[int, int, int], sums: int, at: int,
        ahead: tuple[int, int], room: int,
    ) -> None:  # fmt: skip
        """`count` blocks from `first` on times rows of x; with each block, `room` bytes are prefetched at `ahead`.

        rows: the address of the first, the bytes to the next, and the address of the last, which is repeated.
        """
        its, total = addresses(*rows), load(sums) if first else no_sums()
        for i in range(count):
            prefetch(ahead, i * room, room)
            low, high = unpack(tiles[0], first + i), unpack(tiles[1], first + i)
            scales = scales_of(tiles, first + i, at + 256 * i)
            total = add(total, add_words(begin(its, zero), low[0], high[0], its), its, scales)
            its = following(its)
        store(sums, total)

    return panel


def multiplier(form: BlockFormat) -> Inline:
    """The product of two tiles of a format, as `gemm_quantized.multiplier` describes it."""
    keep, scales_of = _scales_of(form)
    one, size = _one_row(form.layout.algebra), form.layout.eight_blocks // 8
    one_row, two_rows, four_rows = (_panel(form, rows, scales_of) for rows in (one, _twice(one), _twice(_twice(one))))

    @inline
    def multiply(
        tiles: tuple[int, int], skipped: int, x: int, lines: int, blocks: int, out: int, stride: int, at: int
    ) -> int:  # fmt: skip
        line, piece, whole = blocks * Q8_BLOCK, -(-size // (64 * -(-lines // ROWS))) * 64, lines - lines % ROWS
        rest = at + SUMS + 128 * (whole - max(0, lines - ROWS))  # where `place` finds the rows after the last four
        for first in range(0, blocks, BLOCKS):
            count = min(BLOCKS, blocks - first)
            after, its = first + count + AHEAD, x + first * Q8_BLOCK
            later, last = after * size + (skipped if after >= blocks else 0), its + (lines - 1) * line
            keep(tiles, first, count, at)
            for number in range(max(1, whole // ROWS)):  # fewer than four rows in all are repeated
                row, done = ROWS * number, number * count * piece
                if stride and first + count == blocks:
                    prefetch_rows(out + row * stride, stride, ROWS)
                four_rows(
                    tiles, first, count, (its + row * line, line, last), at + SUMS + 128 * row, at,
                    (tiles[0] + later + done, tiles[1] + later + done), piece if done < BLOCKS * size else 0,
                )  # fmt: skip
            if lines % ROWS and whole:
                done = whole // ROWS * count * piece
                ahead, room = (tiles[0] + later + done, tiles[1] + later + done), piece if done < BLOCKS * size else 0
                if stride and first + count == blocks:
                    prefetch_rows(out + whole * stride, stride, ROWS)
                if lines & 2:
                    rows = its + whole * line, line, last
                    two_rows(tiles, first, count, rows, rest + 128 * whole, at, ahead, room)
                    room = 0
                if lines & 1:
                    one_row(tiles, first, count, (last, line, last), rest + 128 * (lines - 1), at, ahead, room)
        return at + SUMS

    return multiply
