"""A panel of unpacked blocks of two tiles times four rows of x in vector registers; `gemm_panels` says how they lie."""

from collections.abc import Callable

from llamita.kernels.block_format import Layout
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.block_dots import Dots, dots_of
from llamita.kernels.cpu.constants import Q8_BLOCK, ROWS
from llamita.kernels.cpu.gemm_panels import (
    SCALES,
    SECONDS,
    UNPACKED,
    Pair,
    Panel,
    add_offset,
    add_row,
    add_symmetric,
    add_two_scales,
    do_nothing,
    end_nothing,
    load_pair,
    prefetch,
    store_pair,
)
from llamita.kernels.cpu.runtime.program import Inline, inline

Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]
Fours = tuple[Pair, Pair, Pair, Pair]  # of two tiles and four rows of x


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


def _two_tiles(add: Inline, dots_of: Inline) -> Inline:
    @inline
    def panel(unpacked, count, zero, x, line, sums, ahead, piece):
        a, b, c, d = load_pair(sums), load_pair(sums + 128), load_pair(sums + 256), load_pair(sums + 384)
        for i in range(count):
            prefetch(ahead, i * piece, piece)
            dots, more = dots_of(unpacked, zero, x, line)
            scales, seconds = load_pair(unpacked + SCALES), load_pair(unpacked + SECONDS)
            a = add_row(add, dots[0], more[0], x, scales, seconds, a)
            b = add_row(add, dots[1], more[1], x + line, scales, seconds, b)
            c = add_row(add, dots[2], more[2], x + 2 * line, scales, seconds, c)
            d = add_row(add, dots[3], more[3], x + 3 * line, scales, seconds, d)
            unpacked, x = unpacked + UNPACKED, x + Q8_BLOCK
        store_pair(sums, a)
        store_pair(sums + 128, b)
        store_pair(sums + 256, c)
        store_pair(sums + 384, d)

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


def panel_of(layout: Layout) -> Panel:
    """The panel of four rows, in the shape that the registers hold."""
    dots = dots_of(layout)
    is_two = v.instructions().tiles == 2
    multiply = TWO_TILES[layout.algebra] if is_two else _one_tile(ONE_TILE[layout.algebra](dots))
    ready = dots.ready

    @inline
    def ready_word(word: v.Vector, zero: int) -> v.Vector:
        return ready(word)

    return Panel(ROWS, multiply, ready_word, do_nothing, end_nothing)
