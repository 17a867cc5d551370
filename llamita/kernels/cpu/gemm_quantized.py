"""GEMM of a quantized matrix with many rows of x: blocks are unpacked once for all of them.

Must equal what `gemv_quantized` makes of each row alone, to the last bit.

Two tiles side by side are unpacked, a panel of blocks at a time, and stay in the first cache while four rows of x after
the other are multiplied: a word of x goes into two products, a word of codes into four, so that there are fewer loads
than products. The sums wait in memory between the blocks.

An unpacked block: eight words of both tiles, then both their scales, then both their second scales.
"""

from llamita.kernels.block_format import Unpacked
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import LINES, Q8_BLOCK, ROWS
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 16  # of a panel
SCALES, SECONDS, UNPACKED = 1024, 1152, 1280  # where they begin, and where the next block does
ROOM = BLOCKS * UNPACKED + 128 * (LINES + ROWS)  # bytes that `multiply` works in

Pair = tuple[v.Vector, v.Vector]  # of the two tiles
Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]


# From the dot products of a block's words with a q8_block of x to the sums so far; one for each algebra of `Layout`.


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
def _put_unpacked(unpacked: Unpacked, to: int) -> None:
    words, first, second = unpacked
    for word in words:
        v.store_words(to, word)
        to += 128
    v.store(to, first)
    v.store(to + SECONDS - SCALES, second)


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
    """What sums begin with where codes lie around two to the power `zero`; x is where the sums of x are."""
    return (
        v.shl(v.broadcast_word(x), zero), v.shl(v.broadcast_word(x + line), zero),
        v.shl(v.broadcast_word(x + 2 * line), zero), v.shl(v.broadcast_word(x + 3 * line), zero),
    )  # fmt: skip


@inline
def _add(add: Inline, dots: Pair, more: Pair, unpacked: int, x: int, sums: int) -> None:
    """A row's dot products to its sums."""
    first, second = unpacked + SCALES, unpacked + SECONDS
    v.store(sums, add(dots[0], more[0], x, v.load(first), v.load(second), v.load(sums)))
    first, second, sums = first + 64, second + 64, sums + 64
    v.store(sums, add(dots[1], more[1], x, v.load(first), v.load(second), v.load(sums)))


@inline
def _add_four(add: Inline, dots, more, unpacked: int, x: int, line: int, sums: int) -> None:
    _add(add, dots[0], more[0], unpacked, x, sums)
    _add(add, dots[1], more[1], unpacked, x + line, sums + 128)
    _add(add, dots[2], more[2], unpacked, x + 2 * line, sums + 256)
    _add(add, dots[3], more[3], unpacked, x + 3 * line, sums + 384)


@inline
def four_symmetric(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero of two to the power `zero`."""
    dots = _dots(unpacked, x, line, _zeros(x + 44, line, zero), 0, 8)
    _add_four(add_symmetric, dots, dots, unpacked, x, line, sums)


@inline
def four_offset(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes above a minimum."""
    nothing = v.zero_words()
    dots = _dots(unpacked, x, line, (nothing, nothing, nothing, nothing), 0, 8)
    _add_four(add_offset, dots, dots, unpacked, x, line, sums)


@inline
def four_two_scales(unpacked: int, zero: int, x: int, line: int, sums: int) -> None:
    """Codes around a zero, with a scale for either half of the columns."""
    low = _dots(unpacked, x, line, _zeros(x + 36, line, zero), 0, 4)
    high = _dots(unpacked, x, line, _zeros(x + 40, line, zero), 4, 8)
    _add_four(add_two_scales, low, high, unpacked, x, line, sums)


@inline
def multiply(
    unpack: Inline,
    four: Inline,
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
    line, fours, sums = blocks * Q8_BLOCK, -(-lines // ROWS), at + BLOCKS * UNPACKED
    v.zero_memory(sums, 2 * ROWS * fours)
    for first in range(0, blocks, BLOCKS):
        count = min(BLOCKS, blocks - first)
        for i in range(count):
            v.prefetch_ahead(tiles[0] + (first + i) * (size // 8), size // 8)
            v.prefetch_ahead(tiles[1] + (first + i) * (size // 8), size // 8)
            _put_unpacked(unpack(tiles[0], first + i), at + i * UNPACKED)
            _put_unpacked(unpack(tiles[1], first + i), at + i * UNPACKED + 64)
        for number in range(fours):
            q8_block = (
                x + min(ROWS * number, lines - ROWS) * line + first * Q8_BLOCK
            )  # the last four may begin in others
            for i in range(count):
                four(at + i * UNPACKED, zero, q8_block + i * Q8_BLOCK, line, sums + 128 * ROWS * number)
    return sums


@inline
def place(row: int, lines: int) -> int:
    """Where in the sums a row's two vectors are."""
    number = row // ROWS
    return 128 * (ROWS * number + row - min(ROWS * number, lines - ROWS))
