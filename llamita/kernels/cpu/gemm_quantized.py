"""GEMM of a quantized matrix with many rows of x: blocks are unpacked once for all of them.

Must equal what `gemv_quantized` makes of each row alone, to the last bit.

Two neighbouring tiles are unpacked, a panel of blocks at a time. They stay in the first-level cache while all rows of x
are multiplied, four at a time: a word of x is used in two products, a word of codes in four, so that there are fewer
loads than products. Between blocks the sums are in memory.

An unpacked block: eight words of both tiles, then both their scales, then both their second scales.
"""

from collections.abc import Callable

from llamita.kernels.block_format import Unpacked
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.block_dots import Dots
from llamita.kernels.cpu.constants import LINES, Q8_BLOCK, ROWS
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 16  # of a panel
SCALES, SECONDS, UNPACKED = 1024, 1152, 1280  # where they begin, and where the next block does
ROOM = BLOCKS * UNPACKED + 128 * (LINES + ROWS)  # bytes that `multiply` works in

Pair = tuple[v.Vector, v.Vector]  # of the two tiles
Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]


# Add the dot products of a block's words and a q8_block of x to the sums; one function for each algebra of `Layout`.


@inline
def add_symmetric(dot: v.Vector, _: v.Vector, x: int, scale: v.Vector, second: v.Vector, total: v.Vector) -> v.Vector:
    """Codes around a zero, which the dot product takes into account."""
    return v.fma(v.mul(v.to_fp32(dot), v.broadcast(v.read_fp32(x + 32))), scale, total)


@inline
def add_offset(dot: v.Vector, _: v.Vector, x: int, scale: v.Vector, minimum: v.Vector, total: v.Vector) -> v.Vector:
    """Codes above a minimum."""
    below = v.mul(v.to_fp32(v.broadcast_word(x + 44)), minimum)
    return v.fma(v.fma(v.to_fp32(dot), scale, below), v.broadcast(v.read_fp32(x + 32)), total)


@inline
def add_two_scales(
    low: v.Vector, high: v.Vector, x: int, first: v.Vector, second: v.Vector, total: v.Vector
) -> v.Vector:
    """Codes around a zero, with a dot product and a scale for either half of the columns."""
    both = v.fma(v.to_fp32(high), second, v.mul(v.to_fp32(low), first))
    return v.fma(both, v.broadcast(v.read_fp32(x + 32)), total)


@inline
def _put_unpacked(ready: Inline, unpacked: Unpacked, to: int) -> None:
    words, first, second = unpacked
    for word in words:
        v.store_words(to, ready(word))
        to += 128
    v.store(to, first)
    v.store(to + SECONDS - SCALES, second)


# Two tiles at once: eight sums, for machines whose registers hold that and more.


@inline
def _dots(unpacked: int, x: int, line: int, begin: Four, first: int, last: int) -> tuple[Pair, Pair, Pair, Pair]:
    """Words `first` to `last` of two tiles times four rows of x, `line` bytes apart; sums begin with `begin`."""
    a, b, c, d = begin
    e, f, g, h = begin
    for group in range(first, last):
        low, high = v.load_words(unpacked + 128 * group), v.load_words(unpacked + 128 * group + 64)
        at = x + 4 * group
        one, two = v.broadcast_word(at), v.broadcast_word(at + line)
        a, e, b, f = (
            v.dot_u8s8(a, low, one),
            v.dot_u8s8(e, high, one),
            v.dot_u8s8(b, low, two),
            v.dot_u8s8(f, high, two),
        )
        one, two = v.broadcast_word(at + 2 * line), v.broadcast_word(at + 3 * line)
        c, g, d, h = (
            v.dot_u8s8(c, low, one),
            v.dot_u8s8(g, high, one),
            v.dot_u8s8(d, low, two),
            v.dot_u8s8(h, high, two),
        )
    return (a, e), (b, f), (c, g), (d, h)


@inline
def _zeros(x: int, line: int, zero: int) -> Four:
    """The first value of sums for codes around two to the power `zero`; x: the address of the sums of x."""
    return (
        v.shl(v.broadcast_word(x), zero), v.shl(v.broadcast_word(x + line), zero),
        v.shl(v.broadcast_word(x + 2 * line), zero), v.shl(v.broadcast_word(x + 3 * line), zero),
    )  # fmt: skip


@inline
def _add(add: Inline, dot: v.Vector, more: v.Vector, unpacked: int, x: int, sums: int) -> None:
    """The dot products of a tile and a row of x to their sums."""
    v.store(sums, add(dot, more, x, v.load(unpacked + SCALES), v.load(unpacked + SECONDS), v.load(sums)))


@inline
def _add_four(add: Inline, dots, more, unpacked: int, x: int, line: int, sums: int) -> None:
    for row in range(ROWS):
        _add(add, dots[row][0], more[row][0], unpacked, x + row * line, sums + 128 * row)
        _add(add, dots[row][1], more[row][1], unpacked + 64, x + row * line, sums + 128 * row + 64)


@inline
def _two_symmetric(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero of two to the power `zero`."""
    dots = _dots(unpacked, x, line, _zeros(x + 44, line, zero), 0, 8)
    _add_four(add_symmetric, dots, dots, unpacked, x, line, sums)


@inline
def _two_offset(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes above a minimum."""
    nothing = v.zero_words()
    dots = _dots(unpacked, x, line, (nothing, nothing, nothing, nothing), 0, 8)
    _add_four(add_offset, dots, dots, unpacked, x, line, sums)


@inline
def _two_two_scales(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero, with a scale for either half of the columns."""
    low = _dots(unpacked, x, line, _zeros(x + 36, line, zero), 0, 4)
    high = _dots(unpacked, x, line, _zeros(x + 40, line, zero), 4, 8)
    _add_four(add_two_scales, low, high, unpacked, x, line, sums)


TWO_TILES: dict[str, Inline] = {"symmetric": _two_symmetric, "offset": _two_offset, "two_scales": _two_two_scales}


# One tile after the other: four sums.


def _products(dots: Dots, words: int) -> Inline:
    _, _, period, begin, step, close = dots
    period = min(period, words)

    @inline
    def products(tile: int, x: int, line: int, totals: Four) -> Four:
        """The words of a tile times four rows of x, `line` bytes apart, added to totals."""
        for start in range(0, words, period):
            a, b, c, d = begin(totals[0]), begin(totals[1]), begin(totals[2]), begin(totals[3])
            for group in range(start, start + period):
                word, at = v.load_words(tile + 128 * group), x + 4 * group
                a = step(a, word, v.broadcast_word(at))
                b = step(b, word, v.broadcast_word(at + line))
                c = step(c, word, v.broadcast_word(at + 2 * line))
                d = step(d, word, v.broadcast_word(at + 3 * line))
            totals = close(totals[0], a), close(totals[1], b), close(totals[2], c), close(totals[3], d)
        return totals

    return products


def _begins(dots: Dots) -> Inline:
    begin = dots.begin

    @inline
    def begins(at: int, line: int, zero: int) -> Four:
        return begin(at, zero), begin(at + line, zero), begin(at + 2 * line, zero), begin(at + 3 * line, zero)

    return begins


@inline
def _add_rows(add: Inline, dots: Four, more: Four, tile: int, x: int, line: int, sums: int) -> None:
    for row in range(ROWS):
        _add(add, dots[row], more[row], tile, x + row * line, sums + 128 * row)


def _each_symmetric(dots: Dots) -> Inline:
    products, begins = _products(dots, 8), _begins(dots)

    @inline
    def four(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
        for to in range(0, v.hidden(128), 64):
            both = products(unpacked + to, x, line, begins(x + 44, line, zero))
            _add_rows(add_symmetric, both, both, unpacked + to, x, line, sums + to)

    return four


def _each_offset(dots: Dots) -> Inline:
    products = _products(dots, 8)

    @inline
    def four(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
        nothing = v.zero_words()
        for to in range(0, v.hidden(128), 64):
            both = products(unpacked + to, x, line, (nothing, nothing, nothing, nothing))
            _add_rows(add_offset, both, both, unpacked + to, x, line, sums + to)

    return four


def _each_two_scales(dots: Dots) -> Inline:
    products, begins = _products(dots, 4), _begins(dots)

    @inline
    def four(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
        for to in range(0, v.hidden(128), 64):
            low = products(unpacked + to, x, line, begins(x + 36, line, zero))
            high = products(unpacked + to + 512, x + 16, line, begins(x + 40, line, zero))
            _add_rows(add_two_scales, low, high, unpacked + to, x, line, sums + to)

    return four


ONE_TILE: dict[str, Callable[[Dots], Inline]] = {
    "symmetric": _each_symmetric,
    "offset": _each_offset,
    "two_scales": _each_two_scales,
}


def four(algebra: str, dots: Dots) -> Inline:
    """An unpacked block of two tiles times four rows of x, in the shape that the machine's registers hold."""
    return TWO_TILES[algebra] if v.instructions().tiles == 2 else ONE_TILE[algebra](dots)


@inline
def multiply(
    unpack: Inline,
    ready: Inline,
    four: Inline,
    zero: int,
    size: int,
    tiles: tuple[int, int],
    x: int,
    lines: int,
    blocks: int,
    at: int,
) -> int:
    """Two tiles times ROWS to LINES rows of x; returns the address of the sums, in which `place` finds those of a row.

    size: bytes of eight blocks of a tile. at: the address of the kernel's own memory.
    """
    line, fours, sums = blocks * Q8_BLOCK, -(-lines // ROWS), at + BLOCKS * UNPACKED
    v.zero_memory(sums, 2 * ROWS * fours)
    for first in range(0, blocks, BLOCKS):
        count = min(BLOCKS, blocks - first)
        for i in range(count):
            v.prefetch_ahead(tiles[0] + (first + i) * (size // 8), size // 8)
            v.prefetch_ahead(tiles[1] + (first + i) * (size // 8), size // 8)
            _put_unpacked(ready, unpack(tiles[0], first + i), at + i * UNPACKED)
            _put_unpacked(ready, unpack(tiles[1], first + i), at + i * UNPACKED + 64)
        for number in range(fours):
            q8_block = (
                x + min(ROWS * number, lines - ROWS) * line + first * Q8_BLOCK
            )  # the last four may begin in others
            for i in range(count):
                four(at + i * UNPACKED, zero, q8_block + i * Q8_BLOCK, line, sums + 128 * ROWS * number)
    return sums


@inline
def place(row: int, lines: int) -> int:
    """The address of a row's two vectors of sums."""
    number = row // ROWS
    return 128 * (ROWS * number + row - min(ROWS * number, lines - ROWS))
