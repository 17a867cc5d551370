"""What products of panels of unpacked blocks share: where all lies in memory, and how dot products become sums.

A panel is some blocks of two tiles, which are multiplied with some rows of x. There are three ways, for what registers
a machine has: four rows with the sums of both tiles in vector registers, four rows of one tile after the other
(`gemm_four_rows`), and sixteen rows by registers for tiles of a matrix (`gemm_sixteen_rows`). All give the same bits:
dot products are integers, and each sum adds up its blocks in order.

An unpacked block: eight words of both tiles, then both their scales, then both their second scales.
"""

from typing import NamedTuple

from llamita.kernels.cpu import matrix_tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import LINES
from llamita.kernels.cpu.runtime.program import Inline, inline

BLOCKS = 16  # of a panel
SCALES, SECONDS, UNPACKED = 1024, 1152, 1280  # where they begin, and where the next block does
SUMS = BLOCKS * UNPACKED  # where they lie in the kernel's own memory
DOTS = SUMS + 128 * (LINES + matrix_tiles.ROWS)  # and the dot products of two blocks by matrix tiles
DOTS_OF_BLOCK = 2 * 128 * matrix_tiles.ROWS
ROOM = DOTS + 2 * DOTS_OF_BLOCK  # bytes that a product works in

Pair = tuple[v.Vector, v.Vector]  # of the two tiles


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
def add_row(add: Inline, dots: Pair, more: Pair, x: int, scales: Pair, seconds: Pair, sums: Pair) -> Pair:
    """Add the dot products of a row of x and a block of both tiles to the row's sums."""
    return (
        add(dots[0], more[0], x, scales[0], seconds[0], sums[0]),
        add(dots[1], more[1], x, scales[1], seconds[1], sums[1]),
    )


@inline
def load_pair(at: int) -> Pair:
    """Load the vectors of both tiles."""
    return v.load(at), v.load(at + 64)


@inline
def store_pair(at: int, pair: Pair) -> None:
    """Store them."""
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
def do_nothing(at: int) -> None:
    """Vector registers need no beginning."""


@inline
def end_nothing() -> None:
    """Nor an end."""
