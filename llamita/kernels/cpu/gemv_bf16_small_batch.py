"""A few rows of x in fp32 with a matrix in bf16.

Must equal what `dense` makes of each row alone, up to the order of the sums, which are fp32.

Two tiles of sixteen rows of weights are turned, a panel of columns at a time, so that a lane is a row and its word two
columns of it: a weight is then made fp32 once for four rows of x, and no sum crosses lanes.

K is a multiple of 32, N of 16. The arguments are those of `dense`.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import Eight, no_eight
from llamita.kernels.cpu.gemm_bf16 import turned
from llamita.kernels.cpu.gemv import put_wide
from llamita.kernels.cpu.runtime.program import inline, kernel

_PAIRS = 128  # pairs of columns of a panel

Lines = tuple[int, int, int, int]  # where rows of x begin


@inline
def _add_column(sums: Eight, low: v.Vector, high: v.Vector, x: Lines, at: int) -> Eight:
    """Add a column of both tiles times its number in each row of x."""
    a, b, c, d, e, f, g, h = sums
    one, two = v.broadcast(v.read_fp32(x[0] + at)), v.broadcast(v.read_fp32(x[1] + at))
    three, four = v.broadcast(v.read_fp32(x[2] + at)), v.broadcast(v.read_fp32(x[3] + at))
    return (
        v.fma(low, one, a), v.fma(high, one, b),
        v.fma(low, two, c), v.fma(high, two, d),
        v.fma(low, three, e), v.fma(high, three, f),
        v.fma(low, four, g), v.fma(high, four, h),
    )  # fmt: skip


@inline
def _add_four(panel: int, pairs: int, x: Lines, following: int, step: int, at: int) -> None:
    """A panel's products with four rows of x to their sums; meanwhile it asks for the panel at `following`, if any."""
    sums = no_eight()  # what a panel adds is summed by itself, which rounds less than one long sum
    for i in range(pairs):
        if following:
            v.prefetch(following + (i >> 2) * step + (i & 3) * 128, 128)
        low, high = v.load_words(panel + 64 * i), v.load_words(panel + 64 * (_PAIRS + i))
        sums = _add_column(sums, v.low_bf16(low), v.low_bf16(high), x, 8 * i)
        sums = _add_column(sums, v.high_bf16(low), v.high_bf16(high), x, 8 * i + 4)
    for vector in sums:
        v.store(at, v.add(v.load(at), vector))
        at += 64


@kernel
def linear_bf16(at: int, chunk: int) -> None:
    """Weights in bf16."""
    w, x, out, bias = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, rows, adds = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56), v.read(at + 64)
    panel = v.stack()
    sums, step, fours = panel + 128 * _PAIRS, 2 * k, -(-batch // 4)
    for row in range(chunk * rows, min(n, (chunk + 1) * rows), 32):
        tile = w + row * step
        beside = tile + 16 * step if row + 16 < n else tile
        v.zero_memory(sums, 8 * fours)
        for column in range(0, k, 2 * _PAIRS):
            pairs, later = min(_PAIRS, (k - column) // 2), column + 2 * _PAIRS
            turned(tile + 2 * column, step, pairs, panel)
            turned(beside + 2 * column, step, pairs, panel + 64 * _PAIRS)
            following = tile + 2 * later if later < k else tile + 32 * step
            for first in range(0, batch, 4):
                last, near = batch - 1, x + 4 * column
                lines = (
                    near + 4 * k * first, near + 4 * k * min(first + 1, last), near + 4 * k * min(first + 2, last),
                    near + 4 * k * min(first + 3, last),
                )  # fmt: skip
                _add_four(panel, pairs, lines, 0 if first else following, step, sums + 128 * first)
        for i in range(batch):
            to = 4 * (i * n + row)
            put_wide(out + to, v.load(sums + 128 * i), bias + 4 * row if bias else 0, adds)
            if row + 16 < n:
                put_wide(out + to + 64, v.load(sums + 128 * i + 64), bias + 4 * (row + 16) if bias else 0, adds)
