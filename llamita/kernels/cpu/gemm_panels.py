"""The inner part of `gemm_quantized`: a panel of unpacked blocks of two tiles times some rows of x.

There are three, for what registers a machine has: sixteen rows by registers for tiles of a matrix, four rows with the
sums of both tiles in vector registers, and four rows of one tile after the other. All give the same bits: dot products
are integers, and each sum adds up its blocks in order.

An unpacked block: eight words of both tiles, then both their scales, then both their second scales.
"""

from collections.abc import Callable
from typing import NamedTuple

from llamita.kernels.block_format import Layout
from llamita.kernels.cpu import matrix_tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.block_dots import Dots, dots_of
from llamita.kernels.cpu.constants import LINES, Q8_BLOCK, ROWS
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 16  # of a panel
SCALES, SECONDS, UNPACKED = 1024, 1152, 1280  # where they begin, and where the next block does
SUMS = BLOCKS * UNPACKED  # where they lie in the kernel's own memory
_DOTS = SUMS + 128 * (LINES + matrix_tiles.ROWS)  # and the dot products of two blocks by matrix tiles
_DOTS_OF_BLOCK = 2 * 128 * matrix_tiles.ROWS
ROOM = _DOTS + 2 * _DOTS_OF_BLOCK  # bytes that a product works in
HAS_MATRIX_TILES = v.instructions().matrix_tiles

Pair = tuple[v.Vector, v.Vector]  # of the two tiles
Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]
Fours = tuple[Pair, Pair, Pair, Pair]  # of two tiles and four rows of x


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


# Two tiles at once, for machines whose registers hold eight dot products and eight sums.


@inline
def _dots(unpacked: int, x: int, line: int, begin: Four, first: int, last: int) -> Fours:
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
def _nothing() -> Four:
    nothing = v.zero_words()
    return nothing, nothing, nothing, nothing


@inline
def _symmetric_dots(unpacked: int, zero: int, x: int, line: int) -> tuple[Fours, Fours]:
    """Codes around a zero of two to the power `zero`."""
    dots = _dots(unpacked, x, line, _zeros(x + 44, line, zero), 0, 8)
    return dots, dots


@inline
def _offset_dots(unpacked: int, zero: int, x: int, line: int) -> tuple[Fours, Fours]:
    """Codes above a minimum."""
    dots = _dots(unpacked, x, line, _nothing(), 0, 8)
    return dots, dots


@inline
def _two_scales_dots(unpacked: int, zero: int, x: int, line: int) -> tuple[Fours, Fours]:
    """Codes around a zero, with a scale for either half of the columns."""
    low = _dots(unpacked, x, line, _zeros(x + 36, line, zero), 0, 4)
    return low, _dots(unpacked, x, line, _zeros(x + 40, line, zero), 4, 8)


@inline
def _add_row(add: Inline, dots: Pair, more: Pair, x: int, scales: Pair, seconds: Pair, sums: Pair) -> Pair:
    return (
        add(dots[0], more[0], x, scales[0], seconds[0], sums[0]),
        add(dots[1], more[1], x, scales[1], seconds[1], sums[1]),
    )


@inline
def _load_pair(at: int) -> Pair:
    return v.load(at), v.load(at + 64)


@inline
def _store_pair(at: int, pair: Pair) -> None:
    v.store(at, pair[0])
    v.store(at + 64, pair[1])


@inline
def prefetch(ahead: tuple[int, int], done: int, count: int) -> None:
    """Prefetch `count` bytes at each of two addresses, of which `done` are, into the second-level cache."""
    for i in range(done, done + count, 64):
        v.prefetch_line(ahead[0] + i)
        v.prefetch_line(ahead[1] + i)


@inline
def prefetch_rows(out: int, stride: int, rows: int) -> None:
    """Prefetch where the sums of some rows of x will go: of many rows of a long matrix they are far apart."""
    for row in range(rows):
        v.prefetch_line(out + row * stride)
        v.prefetch_line(out + row * stride + 64)


def _two_tiles(add: Inline, dots_of: Inline) -> Inline:
    @inline
    def panel(unpacked, count, zero, x, line, sums, ahead, piece):
        a, b, c, d = _load_pair(sums), _load_pair(sums + 128), _load_pair(sums + 256), _load_pair(sums + 384)
        for i in range(count):
            prefetch(ahead, i * piece, piece)
            dots, more = dots_of(unpacked, zero, x, line)
            scales, seconds = _load_pair(unpacked + SCALES), _load_pair(unpacked + SECONDS)
            a = _add_row(add, dots[0], more[0], x, scales, seconds, a)
            b = _add_row(add, dots[1], more[1], x + line, scales, seconds, b)
            c = _add_row(add, dots[2], more[2], x + 2 * line, scales, seconds, c)
            d = _add_row(add, dots[3], more[3], x + 3 * line, scales, seconds, d)
            unpacked, x = unpacked + UNPACKED, x + Q8_BLOCK
        _store_pair(sums, a)
        _store_pair(sums + 128, b)
        _store_pair(sums + 256, c)
        _store_pair(sums + 384, d)

    return panel


TWO_TILES: dict[str, Inline] = {
    "symmetric": _two_tiles(add_symmetric, _symmetric_dots),
    "offset": _two_tiles(add_offset, _offset_dots),
    "two_scales": _two_tiles(add_two_scales, _two_scales_dots),
}


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
def _add(add: Inline, dot: v.Vector, more: v.Vector, unpacked: int, x: int, sums: int) -> None:
    """The dot products of a tile and a row of x to their sums."""
    v.store(sums, add(dot, more, x, v.load(unpacked + SCALES), v.load(unpacked + SECONDS), v.load(sums)))


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


def _one_tile(four: Inline) -> Inline:
    @inline
    def panel(unpacked, count, zero, x, line, sums, ahead, piece):
        for i in range(count):
            prefetch(ahead, i * piece, piece)
            four(unpacked + i * UNPACKED, zero, x + i * Q8_BLOCK, line, sums)

    return panel


# Sixteen rows by the registers for tiles of a matrix.


def _matrix_tiles(add: Inline, multiply: Inline) -> Inline:
    @inline
    def panel(unpacked, count, zero, x, line, sums, ahead, piece):
        near = unpacked + _DOTS
        multiply(x, line, unpacked, near)
        for i in range(count):
            prefetch(ahead, i * piece, piece)
            # One block ahead: reading what has just been written would wait for the way to memory.
            to = near + ((i + 1) & 1) * _DOTS_OF_BLOCK
            for row in range(matrix_tiles.ROWS):
                v.prefetch(x + row * line + (i + 3) * Q8_BLOCK, 1)
            if i + 1 < count:
                multiply(x + (i + 1) * Q8_BLOCK, line, unpacked + (i + 1) * UNPACKED, to)
            _add_dots(add, near + (i & 1) * _DOTS_OF_BLOCK, unpacked + i * UNPACKED, x + i * Q8_BLOCK, line, sums)

    return panel


@inline
def _add_dots(add: Inline, dots: int, unpacked: int, x: int, line: int, sums: int) -> None:
    scales, seconds = _load_pair(unpacked + SCALES), _load_pair(unpacked + SECONDS)
    for row in range(matrix_tiles.ROWS):
        dot, more = _load_words(dots + 128 * row), _load_words(dots + 128 * row + _DOTS_OF_BLOCK // 2)
        to = sums + 128 * row
        _store_pair(to, _add_row(add, dot, more, x + row * line, scales, seconds, _load_pair(to)))


@inline
def _load_words(at: int) -> Pair:
    return v.load_words(at), v.load_words(at + 64)


@inline
def _halves(x: int, line: int, unpacked: int, dots: int) -> None:
    """The dot products of either half of the columns."""
    matrix_tiles.multiply(x, line, unpacked, dots)
    matrix_tiles.multiply(x + 16, line, unpacked + 512, dots + _DOTS_OF_BLOCK // 2)


MATRIX_TILES: dict[str, Inline] = {
    "symmetric": _matrix_tiles(add_symmetric, matrix_tiles.multiply),
    "offset": _matrix_tiles(add_offset, matrix_tiles.multiply),
    "two_scales": _matrix_tiles(add_two_scales, _halves),
}


class Panel(NamedTuple):
    """A panel of `count` unpacked blocks of two tiles times `rows` rows of x.

    multiply(unpacked, count, zero, x, line, sums, ahead, piece) adds to sums, and prefetches `piece` bytes at the two
    addresses `ahead` with each block. ready(word, zero): what a word of codes becomes before. begin(at) comes before
    all panels, where `at` is memory that is free then, and end() after them.
    """

    rows: int
    multiply: Inline
    ready: Inline
    begin: Inline
    end: Inline


@inline
def _do_nothing(at: int) -> None:
    pass


@inline
def _end_nothing() -> None:
    pass


def panel_of(layout: Layout) -> Panel:
    """The panel of four rows, in the shape that the registers hold."""
    dots = dots_of(layout)
    is_two = v.instructions().tiles == 2
    multiply = TWO_TILES[layout.algebra] if is_two else _one_tile(ONE_TILE[layout.algebra](dots))
    ready = dots.ready

    @inline
    def ready_word(word: v.Vector, zero: int) -> v.Vector:
        return ready(word)

    return Panel(ROWS, multiply, ready_word, _do_nothing, _end_nothing)


def matrix_panel_of(layout: Layout) -> Panel:
    """The panel of sixteen rows, for machines that have matrix tiles."""
    begin = matrix_tiles.configure_16 if layout.algebra == "two_scales" else matrix_tiles.configure_32
    ready = _as_signed if layout.algebra != "offset" else _as_it_is
    return Panel(matrix_tiles.ROWS, MATRIX_TILES[layout.algebra], ready, begin, matrix_tiles.release)


@inline
def _as_signed(word: v.Vector, zero: int) -> v.Vector:
    return matrix_tiles.signed(word, zero)


@inline
def _as_it_is(word: v.Vector, zero: int) -> v.Vector:
    """Codes above a minimum have seven bits at most, and so no sign."""
    return word
