"""Many rows of x in bf16 with plain matrices in bf16, where the machine multiplies pairs of bf16.

Must equal F.linear of the same, up to the order of the sums, which are fp32 and rounded once at the end.

Two tiles of sixteen rows of weights are turned, a panel of columns at a time, so that a lane is a row and its word two
columns of it; then eight rows of x after the other are multiplied with both. Sums wait in memory between the panels.

K is a multiple of 32, N of 16, and a chunk has from ROWS to `layout.LINES` rows of x. Chunks go over the tiles first.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import add_products, load_eight, store_eight
from llamita.kernels.cpu.elementwise import gated
from llamita.kernels.cpu.runtime.program import inline, kernel

ROWS = 8  # rows of x that are worked on at once
_PAIRS = 128  # pairs of columns of a panel


@inline
def turned(w: int, step: int, pairs: int, to: int) -> None:
    """Sixteen rows of pairs, `step` bytes apart, with a lane for each row."""
    for i in range(0, pairs, 16):
        v.transpose(w + 4 * i, step, to + 64 * i)


@inline
def _multiply(first: int, second: int, following: int, x: int, k: int, lines: int, at: int) -> int:
    """Two tiles times some rows of x; returns where the sums are, which `_place` finds.

    following: the tile that is likely to be next, for which memory is asked in time. at: the kernel's own memory.
    """
    step, eights, sums = 2 * k, -(-lines // ROWS), at + 128 * _PAIRS
    v.zero_memory(sums, 2 * ROWS * eights)
    for column in range(0, k, 2 * _PAIRS):
        pairs, later = min(_PAIRS, k // 2 - column // 2), column + 2 * _PAIRS
        turned(first + 2 * column, step, pairs, at)
        turned(second + 2 * column, step, pairs, at + 64 * _PAIRS)
        for number in range(eights):
            if number < 16:  # a row of either tile's next panel
                v.prefetch((first + 2 * later if later < k else following) + number * step, 4 * _PAIRS)
                v.prefetch((second + 2 * later if later < k else following + 16 * step) + number * step, 4 * _PAIRS)
            line, to = x + min(ROWS * number, lines - ROWS) * step + 2 * column, sums + 128 * ROWS * number
            one, two = load_eight(to), load_eight(to + 64 * ROWS)
            for i in range(pairs):
                one = add_products(one, v.load_words(at + 64 * i), line + 4 * i, step)
                two = add_products(two, v.load_words(at + 64 * (_PAIRS + i)), line + 4 * i, step)
            store_eight(to, one)
            store_eight(to + 64 * ROWS, two)
    return sums


@inline
def _place(row: int, lines: int) -> int:
    """Where a row's sums with the first tile are; those with the second come ROWS vectors later."""
    number = row // ROWS
    return 128 * ROWS * number + 64 * (row - min(ROWS * number, lines - ROWS))


@inline
def _biased(sums: int, bias: int) -> v.Vector:
    return v.add(v.load(sums), v.load(bias)) if bias else v.load(sums)


@kernel
def linear_many(at: int, chunk: int) -> None:
    """Weights (N, K), x (B, K), out (B, N), bias fp32 (N,) or 0, N, K, B, rows of x of a chunk; 32 of the weights."""
    w, x, out, bias = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, lines = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56)
    across = -(-n // 32)
    start, row = chunk // across * lines, chunk % across * 32
    count, tile = min(lines, batch - start), w + 2 * k * row
    beside = tile + 32 * k if row + 16 < n else tile
    sums = _multiply(tile, beside, tile + 64 * k, x + 2 * k * start, k, count, v.stack())
    for i in range(count):
        its, to = sums + _place(i, count), out + 2 * ((start + i) * n + row)
        v.store_bf16(to, _biased(its, bias + 4 * row if bias else 0))
        if row + 16 < n:
            v.store_bf16(to + 32, _biased(its + 64 * ROWS, bias + 4 * (row + 16) if bias else 0))


@kernel
def gated_many(at: int, chunk: int) -> None:
    """silu(gate) * up: both weights (N, K), x (B, K), out (B, N), N, K, B, rows of x of a chunk; 16 of the weights."""
    gate, up, x, out = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, lines = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56)
    start, row = chunk // (n // 16) * lines, chunk % (n // 16) * 16
    count = min(lines, batch - start)
    tile, beside = gate + 2 * k * row, up + 2 * k * row
    sums = _multiply(tile, beside, tile + 32 * k, x + 2 * k * start, k, count, v.stack())
    for i in range(count):
        its = sums + _place(i, count)
        v.store_bf16(out + 2 * ((start + i) * n + row), gated(v.load(its), v.load(its + 64 * ROWS)))
