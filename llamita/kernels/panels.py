"""Many rows of x with a packed matrix: blocks are opened once for all of them.

Must equal what `blocks` makes of each row alone, to the last bit.

Two tiles side by side are opened, a panel of blocks at a time, and stand in the first cache while four rows of x after
the other are multiplied: a word of x goes into two products, a word of codes into four, and of both there are fewer
loads than products. Sums wait in memory between the blocks.

An opened block: eight words of both tiles, then both their scales, then both their second scales.
"""

from llamita.kernels import simd as v
from llamita.kernels.formats import Opened, Part, add_above, add_centred, add_halves
from llamita.kernels.layout import LINES, RECORD, ROWS
from llamita.kernels.program import part

BLOCKS = 16  # of a panel
SCALES, SECONDS, OPENED = 1024, 1152, 1280  # where they begin, and where the next block does
ROOM = BLOCKS * OPENED + 128 * (LINES + ROWS)  # bytes that `multiply` works in

Pair = tuple[v.Vector, v.Vector]  # of the two tiles
Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]


@part
def _put_opened(opened: Opened, to: int) -> None:
    words, first, second = opened
    for word in words:
        v.store_words(to, word)
        to += 128
    v.store(to, first)
    v.store(to + SECONDS - SCALES, second)


@part
def _dots(opened: int, x: int, line: int, begin: Four, first: int, last: int) -> tuple[Pair, Pair, Pair, Pair]:
    """Words `first` to `last` of two tiles times four rows of x, `line` bytes apart; sums begin with `begin`."""
    a, b, c, d = begin
    e, f, g, h = begin
    for group in range(first, last):
        low, high = v.load_words(opened + 128 * group), v.load_words(opened + 128 * group + 64)
        at = x + 4 * group
        one, two = v.load_everywhere(at), v.load_everywhere(at + line)
        a, e, b, f = v.dot4(a, low, one), v.dot4(e, high, one), v.dot4(b, low, two), v.dot4(f, high, two)
        one, two = v.load_everywhere(at + 2 * line), v.load_everywhere(at + 3 * line)
        c, g, d, h = v.dot4(c, low, one), v.dot4(g, high, one), v.dot4(d, low, two), v.dot4(h, high, two)
    return (a, e), (b, f), (c, g), (d, h)


@part
def _zeros(x: int, line: int, zero: int) -> Four:
    """What sums begin with where codes lie around two to the power `zero`; x is where the sums of x stand."""
    return (
        v.shifted(v.load_everywhere(x), zero), v.shifted(v.load_everywhere(x + line), zero),
        v.shifted(v.load_everywhere(x + 2 * line), zero), v.shifted(v.load_everywhere(x + 3 * line), zero),
    )  # fmt: skip


@part
def _add(add: Part, dots: Pair, more: Pair, opened: int, x: int, sums: int) -> None:
    """A row's dots to its sums."""
    first, second = opened + SCALES, opened + SECONDS
    v.store(sums, add(dots[0], more[0], x, v.load(first), v.load(second), v.load(sums)))
    first, second, sums = first + 64, second + 64, sums + 64
    v.store(sums, add(dots[1], more[1], x, v.load(first), v.load(second), v.load(sums)))


@part
def _add_four(add: Part, dots, more, opened: int, x: int, line: int, sums: int) -> None:
    _add(add, dots[0], more[0], opened, x, sums)
    _add(add, dots[1], more[1], opened, x + line, sums + 128)
    _add(add, dots[2], more[2], opened, x + 2 * line, sums + 256)
    _add(add, dots[3], more[3], opened, x + 3 * line, sums + 384)


@part
def four_centred(opened: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero of two to the power `zero`."""
    dots = _dots(opened, x, line, _zeros(x + 44, line, zero), 0, 8)
    _add_four(add_centred, dots, dots, opened, x, line, sums)


@part
def four_above(opened: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes above a minimum."""
    nothing = v.no_words()
    dots = _dots(opened, x, line, (nothing, nothing, nothing, nothing), 0, 8)
    _add_four(add_above, dots, dots, opened, x, line, sums)


@part
def four_halves(opened: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero, with a scale for either half of the columns."""
    low = _dots(opened, x, line, _zeros(x + 36, line, zero), 0, 4)
    high = _dots(opened, x, line, _zeros(x + 40, line, zero), 4, 8)
    _add_four(add_halves, low, high, opened, x, line, sums)


@part
def multiply(
    open_block: Part,
    four: Part,
    zero: int,
    size: int,
    tiles: tuple[int, int],
    x: int,
    lines: int,
    blocks: int,
    at: int,
) -> int:
    """Two tiles times ROWS to LINES rows of x; returns where the sums are, among which `place` finds a row's.

    size: bytes of eight blocks of a tile. at: the kernel's own memory.
    """
    line, fours, sums = blocks * RECORD, -(-lines // ROWS), at + BLOCKS * OPENED
    v.clear(sums, 2 * ROWS * fours)
    for first in range(0, blocks, BLOCKS):
        count = min(BLOCKS, blocks - first)
        for i in range(count):
            v.fetch_ahead(tiles[0] + (first + i) * (size // 8), size // 8)
            v.fetch_ahead(tiles[1] + (first + i) * (size // 8), size // 8)
            _put_opened(open_block(tiles[0], first + i), at + i * OPENED)
            _put_opened(open_block(tiles[1], first + i), at + i * OPENED + 64)
        for number in range(fours):
            record = x + min(ROWS * number, lines - ROWS) * line + first * RECORD  # the last four may begin in others
            for i in range(count):
                four(at + i * OPENED, zero, record + i * RECORD, line, sums + 128 * ROWS * number)
    return sums


@part
def place(row: int, lines: int) -> int:
    """Where in the sums a row's two vectors are."""
    number = row // ROWS
    return 128 * (ROWS * number + row - min(ROWS * number, lines - ROWS))
