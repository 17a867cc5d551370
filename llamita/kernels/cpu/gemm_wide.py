"""Products with a plain matrix on processors whose registers hold sixteen lanes, 32 of them (AVX-512).

Must equal reference.product bit for bit. Four rows of the matrix are multiplied with one to six rows of x at a time,
and all sums stay in registers: those of six fill 24. Columns are taken in panels where there are many, so that six rows
of x stay in the caches. While a chunk is multiplied, the matrix's next rows come from memory, a little with each step:
else few rows of x would read memory and multiply in turns.
"""

from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.gemm_sums import FOURS, PUT, VECTORS
from llamita.kernels.cpu.gemm_tiles import Shape
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
# The rows of x that are taken at once, by the number of those that are left: six read the matrix least often, and one
# or two that are left alone would read it as often.
# Four bits for each: a tuple would be an IndexError in the machine code, which then calls Python and cannot be kept.
HEIGHTS = sum(height << 4 * left for left, height in enumerate((0, 1, 2, 3, 4, 5, 6, 4, 4, 5, 5, 6, 6)))
WIDE = 6  # the most of them
AHEAD = 8  # rows of the matrix between a row and what is prefetched with it, where it is read once
PANEL = 128  # steps of a panel of columns
SAVED = 1024  # where sums between panels are in the kernel's own memory

# What is prefetched: an address, the bytes from there to the next step's, the bytes between lines of a step, how many.
Fetch = tuple[int, int, int, int]
NONE: Fetch = (0, 0, 0, 0)


# Up to five rows of x in all are multiplied with one row of the matrix after the other, which the processor's own
# prefetcher reads faster than four side by side. It stops at the end of a page, so one line of every two, or all of
# them, are prefetched too: bytes ahead, and the bits that are 0 in the place of one that is. By measurement. Four rows
# of the matrix read x once instead of four times: where it does not stay in the first-level cache, and where it is
# wider than the matrix (fp16), they are faster.
FEW, NEAR = 5, 20 << 10
SPARSE, DENSE = (4096, 127), (16384, 63)


@inline
def _tile(load_w, load_x, add, add_rows, size, w, stride, x, x_stride, steps, fetch, begin):
    """Four rows of the matrix times some rows of x."""
    sums, (ahead, pitch, apart, lines) = begin, fetch
    for i in range(steps):
        weights = tiles.weights(load_w, w + size * i, stride)
        for line in range(lines):
            v.prefetch_line(ahead + pitch * i + apart * line)
        sums = add_rows(add, load_x, weights, x + 64 * i, x_stride, sums)
    return sums


def _finish(height: int) -> Inline:
    add_rows, put = FOURS[height - 1].add, PUT[height - 1]

    @inline
    def finish(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, sums):
        """Add the last columns, which do not fill a vector, and write the sums."""
        size, x_stride, steps, rest, x_rest, n = shape
        if rest:
            tiles.pad(w + size * steps, stride, 4, rest, near)
            tiles.pad(x + 64 * steps, x_stride, height, x_rest, near + 256)
            sums = _tile(load_w, load_x, add, add_rows, size, near, 64, near + 256, 64, 1, NONE, sums)
        put(sums, out, 4 * n, bias, left, adds)

    return finish


def _few(height: int, fetch: tuple[int, int]) -> Inline:
    (_, begin, add_rows, _, store), load, (ahead, mask) = VECTORS[height - 1], FOURS[height - 1].load, fetch
    finish = _finish(height)

    @inline
    def few(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near):
        """Four rows of the matrix, one after the other, times `height` rows of x."""
        size, x_stride, steps, _, _, _ = shape
        for row in range(4):
            sums, its = begin(), w + row * stride
            for i in range(steps):
                if (size * i) & mask == 0:
                    v.prefetch_line(its + size * i + ahead)
                sums = add_rows(add, load_x, load_w(its + size * i), x + 64 * i, x_stride, sums)
            store(near + SAVED + 64 * row, sums)
        finish(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, load(near + SAVED))

    return few


def _rows(height: int) -> Inline:
    (_, begin, add_rows, _, _), finish = FOURS[height - 1], _finish(height)

    @inline
    def rows(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, fetch):
        """Four rows of the matrix times `height` rows of x, to the end."""
        size, x_stride, steps, _, _, _ = shape
        sums = _tile(load_w, load_x, add, add_rows, size, w, stride, x, x_stride, steps, fetch, begin())
        finish(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, sums)

    return rows


_few_1, _few_2, _few_3, _few_4, _few_5 = map(_few, range(1, 6), (SPARSE, SPARSE, SPARSE, DENSE, DENSE))
_rows_2, _rows_3, _rows_4, _rows_5 = _rows(2), _rows(3), _rows(4), _rows(5)
_, _begin_6, _add_6, _load_6, _store_6 = FOURS[WIDE - 1]
_finish_6 = _finish(WIDE)


@inline
def _rows_6(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, fetch, panel, saved):
    """The same with six rows of x, over one panel of the columns, from step `panel` on."""
    size, x_stride, steps, _, _, _ = shape
    count, (ahead, pitch, apart, lines) = min(PANEL, steps - panel), fetch
    later = ahead + pitch * panel, pitch, apart, lines
    begin, at, at_x = _load_6(saved) if panel else _begin_6(), w + size * panel, x + 64 * panel
    sums = _tile(load_w, load_x, add, _add_6, size, at, stride, at_x, x_stride, count, later, begin)
    if panel + count < steps:
        _store_6(saved, sums)
    else:
        _finish_6(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, sums)


@inline
def _few_rows(load_w, load_x, add, shape, w, stride, rows, lines, x, out, bias, adds, near):
    """Some rows of the matrix times one to five rows of x."""
    row = 0
    while row < rows:
        left, step = (4, stride) if row + 4 <= rows else (1, 0)
        its, to, its_bias = w + row * stride, out + 4 * row, bias + 4 * row if bias else 0
        if lines == 1:
            _few_1(load_w, load_x, add, shape, its, step, x, to, its_bias, left, adds, near)
        elif lines == 2:
            _few_2(load_w, load_x, add, shape, its, step, x, to, its_bias, left, adds, near)
        elif lines == 3:
            _few_3(load_w, load_x, add, shape, its, step, x, to, its_bias, left, adds, near)
        elif lines == 4:
            _few_4(load_w, load_x, add, shape, its, step, x, to, its_bias, left, adds, near)
        else:
            _few_5(load_w, load_x, add, shape, its, step, x, to, its_bias, left, adds, near)
        row += left


@inline
def linear(
    load_w: Inline, load_x: Inline, add: Inline, span: int, element: int, x_element: int, at: int, chunk: int
) -> None:
    """span: columns of a step. element, x_element: bytes of a column of the matrix and of x."""
    w, x, out, bias = v.read(at + AT.weight), v.read(at + AT.x), v.read(at + AT.out), v.read(at + AT.bias)
    n, k, adds = v.read(at + AT.rows), v.read(at + AT.columns), v.read(at + AT.adds)
    start, end, line, last = tiles.part_of(at, chunk)
    steps, rest, stride, near = k // span, k % span, k * element, v.stack()
    shape: Shape = (span * element, k * x_element, steps, rest * element, rest * x_element, n)
    if last - line <= (FEW if element >= x_element else 1) and (last - line) * shape[1] <= NEAR:
        its_x, to, its_bias = x + line * shape[1], out + 4 * (n * line + start), bias + 4 * start if bias else 0
        first, rows, lines = w + start * stride, end - start, last - line
        _few_rows(load_w, load_x, add, shape, first, stride, rows, lines, its_x, to, its_bias, adds, near)
        return
    # Where the matrix is read once, the same columns of later rows are prefetched; else the next chunk, evenly with all
    # rows of x.
    turns = -(-(last - line) // WIDE)
    later, end_of_later, lines = w + end * stride, w + min(n, 2 * end - start) * stride, -(-4 // turns)
    while line < last:
        height = HEIGHTS >> 4 * min(last - line, 2 * WIDE) & 15
        its_x, to = x + line * shape[1], out + 4 * n * line
        ahead = later
        for panel in range(0, max(1, steps) if height == WIDE else 1, PANEL):
            row, saved, ahead = start, near + SAVED, later
            while row < end:
                left, step = (4, stride) if row + 4 <= end else (1, 0)
                its, its_to, its_bias = w + row * stride, to + 4 * row, bias + 4 * row if bias else 0
                fetch = its + AHEAD * stride, shape[0], stride, 4
                if turns > 1:
                    fetch = ahead, 64 * lines, 64, lines if ahead < end_of_later else 0
                if height == WIDE:
                    _rows_6(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near, fetch,
                        panel, saved,
                    )  # fmt: skip
                elif height == 5:
                    _rows_5(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near, fetch,
                    )  # fmt: skip
                elif height == 4:
                    _rows_4(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near, fetch,
                    )  # fmt: skip
                elif height == 3:
                    _rows_3(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near, fetch,
                    )  # fmt: skip
                elif height == 2:
                    _rows_2(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near, fetch,
                    )  # fmt: skip
                else:
                    tiles.rows_1(
                        load_w, load_x, add, shape, its, step, its_x, its_to, its_bias, left, adds, near
                    )  # fmt: skip
                row, saved, ahead = row + left, saved + 256 * WIDE, ahead + 64 * lines * steps
        line, later = line + height, ahead
