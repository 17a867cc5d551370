"""A panel of unpacked blocks of two tiles times sixteen rows of x, by the registers for tiles of a matrix.

`gemm_panels` says how all lies in memory.
"""

from llamita.kernels.block_format import Layout
from llamita.kernels.cpu import matrix_tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.gemm_panels import (
    DOTS,
    DOTS_OF_BLOCK,
    SCALES,
    SECONDS,
    UNPACKED,
    Pair,
    Panel,
    add_offset,
    add_row,
    add_symmetric,
    add_two_scales,
    load_pair,
    prefetch,
    store_pair,
)
from llamita.kernels.cpu.runtime.program import Inline, inline

HAS_MATRIX_TILES = v.instructions().matrix_tiles


def _matrix_tiles(add: Inline, multiply: Inline) -> Inline:
    @inline
    def panel(unpacked, count, zero, x, line, sums, ahead, piece):
        near = unpacked + DOTS
        multiply(x, line, unpacked, near)
        for i in range(count):
            prefetch(ahead, i * piece, piece)
            # One block ahead: reading what has just been written would wait for the way to memory.
            to = near + ((i + 1) & 1) * DOTS_OF_BLOCK
            for row in range(matrix_tiles.ROWS):
                v.prefetch(x + row * line + (i + 3) * Q8_BLOCK, 1)
            if i + 1 < count:
                multiply(x + (i + 1) * Q8_BLOCK, line, unpacked + (i + 1) * UNPACKED, to)
            _add_dots(add, near + (i & 1) * DOTS_OF_BLOCK, unpacked + i * UNPACKED, x + i * Q8_BLOCK, line, sums)

    return panel


@inline
def _add_dots(add: Inline, dots: int, unpacked: int, x: int, line: int, sums: int) -> None:
    scales, seconds = load_pair(unpacked + SCALES), load_pair(unpacked + SECONDS)
    for row in range(matrix_tiles.ROWS):
        dot, more = _load_words(dots + 128 * row), _load_words(dots + 128 * row + DOTS_OF_BLOCK // 2)
        to = sums + 128 * row
        store_pair(to, add_row(add, dot, more, x + row * line, scales, seconds, load_pair(to)))


@inline
def _load_words(at: int) -> Pair:
    return v.load_words(at), v.load_words(at + 64)


@inline
def _halves(x: int, line: int, unpacked: int, dots: int) -> None:
    """The dot products of either half of the columns."""
    matrix_tiles.multiply(x, line, unpacked, dots)
    matrix_tiles.multiply(x + 16, line, unpacked + 512, dots + DOTS_OF_BLOCK // 2)


MATRIX_TILES: dict[str, Inline] = {
    "symmetric": _matrix_tiles(add_symmetric, matrix_tiles.multiply),
    "offset": _matrix_tiles(add_offset, matrix_tiles.multiply),
    "two_scales": _matrix_tiles(add_two_scales, _halves),
}


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
