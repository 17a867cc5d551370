"""GEMM of a quantized matrix with several rows of x.

Must equal what `gemv_quantized` makes of each row alone, to the last bit.

Two neighbouring tiles are multiplied, a panel of blocks at a time, which stays in the first-level cache for all rows of
x: four or sixteen of them at once. Codes of 8 and 4 bits are unpacked in registers where there is VNNI
(`gemm_in_registers`), others once for all rows (`gemm_panels`). Between panels the sums are in memory.
"""

from llamita.kernels.block_format import BlockFormat, Unpacked
from llamita.kernels.cpu import gemm_in_registers as in_registers
from llamita.kernels.cpu import matrix_tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK, ROWS
from llamita.kernels.cpu.gemm_four_rows import panel_of
from llamita.kernels.cpu.gemm_panels import BLOCKS, SCALES, SECONDS, SUMS, UNPACKED, Panel, prefetch_rows
from llamita.kernels.cpu.gemm_sixteen_rows import HAS_MATRIX_TILES, matrix_panel_of
from llamita.kernels.cpu.runtime.program import Inline, inline


@inline
def _put_unpacked(ready: Inline, zero: int, unpacked: Unpacked, to: int) -> None:
    words, first, second = unpacked
    for word in words:
        v.store_words(to, ready(word, zero))
        to += 128
    v.store(to, first)
    v.store(to + SECONDS - SCALES, second)


def multiplier(form: BlockFormat) -> Inline:
    """The product of two tiles of a format with ROWS to LINES rows of x.

    multiply(tiles, skipped, x, lines, blocks, out, stride, at) returns the address of the sums, in which `place` finds
    those of a row. skipped: bytes between the end of either tile and the one read after it. out: where the caller will
    write them, in rows of `stride` bytes, or 0 for both. at: the kernel's own memory.
    """
    few = in_registers.multiplier(form) if in_registers.suits(form.layout) else _by(form, panel_of(form.layout))
    if not HAS_MATRIX_TILES:
        return few
    many = _by(form, matrix_panel_of(form.layout))

    @inline
    def multiply(
        tiles: tuple[int, int], skipped: int, x: int, lines: int, blocks: int, out: int, stride: int, at: int
    ) -> int:  # fmt: skip
        if rows_of_panel(lines) == matrix_tiles.ROWS:
            return many(tiles, skipped, x, lines, blocks, out, stride, at)
        return few(tiles, skipped, x, lines, blocks, out, stride, at)

    return multiply


def _by(form: BlockFormat, panel: Panel) -> Inline:
    """The same with one panel. While it is multiplied, the next one is prefetched, a little with each block.

    All at once would fill the processor's buffers, and it would wait.
    """
    unpack, zero, block = inline(form.unpack), form.layout.zero_bits, form.layout.eight_blocks // 8
    rows, multiply_panel, ready, begin, end = panel

    @inline
    def multiply(
        tiles: tuple[int, int], skipped: int, x: int, lines: int, blocks: int, out: int, stride: int, at: int
    ) -> int:  # fmt: skip
        line, groups, sums = blocks * Q8_BLOCK, -(-lines // rows), at + SUMS
        begin(at)
        v.zero_memory(sums, 2 * rows * groups)
        piece = -(-block // (64 * groups)) * 64
        for first in range(0, blocks, BLOCKS):
            count = min(BLOCKS, blocks - first)
            for i in range(count):
                _put_unpacked(ready, zero, unpack(tiles[0], first + i), at + i * UNPACKED)
                _put_unpacked(ready, zero, unpack(tiles[1], first + i), at + i * UNPACKED + 64)
            later = (first + count) * block + (skipped if first + count == blocks else 0)
            for number in range(groups):
                # the last rows may be in the group before too
                row, done = min(rows * number, lines - rows), number * count * piece
                if stride and first + count == blocks:
                    prefetch_rows(out + row * stride, stride, rows)
                multiply_panel(
                    at, count, zero, x + row * line + first * Q8_BLOCK, line, sums + 128 * rows * number,
                    (tiles[0] + later + done, tiles[1] + later + done), piece if done < BLOCKS * block else 0,
                )  # fmt: skip
        end()
        return sums

    return multiply


def fewest(form: BlockFormat) -> int:
    """The rows of x from which on they are multiplied together."""
    return 2 if in_registers.suits(form.layout) else ROWS


@inline
def rows_of_panel(lines: int) -> int:
    """How many rows of x are multiplied at once where there are `lines`."""
    return matrix_tiles.ROWS if HAS_MATRIX_TILES and lines >= matrix_tiles.ROWS else ROWS


@inline
def place(row: int, lines: int) -> int:
    """The address of a row's two vectors of sums. The last panel's rows may be in the one before too."""
    rows = rows_of_panel(lines)
    whole = lines - lines % rows
    return 128 * (row + (whole - max(0, lines - rows) if row >= whole else 0))
