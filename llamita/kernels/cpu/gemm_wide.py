"""Products with a plain matrix on processors whose registers hold sixteen lanes, 32 of them (AVX-512).

Must equal reference.product bit for bit. Four rows of the matrix are multiplied with one to six rows of x at a time,
and all sums stay in registers: those of six fill 24. Columns are taken in panels where there are many, so that six rows
of x stay in the caches. While a chunk is multiplied, the matrix's next rows come from memory, a little with each step:
else few rows of x would read memory and multiply in turns.
"""

from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.gemm_tiles import Four, Shape, load_four, store_four, zeros
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
# The rows of x that are taken at once, by the number of those that are left: six read the matrix least often, and one
# that is left alone would take half as long again as its part of six.
# Four bits for each: a tuple would be an IndexError in the machine code, which then calls Python and cannot be kept.
HEIGHTS = sum(height << 4 * left for left, height in enumerate((0, 1, 2, 3, 4, 5, 6, 4, 4, 5, 5, 6, 6)))
WIDE = 6  # the most of them
AHEAD = 8  # rows of the matrix between a row and what is prefetched with it, where it is read once
PANEL = 128  # steps of a panel of columns
SAVED = 1024  # where sums between panels are in the kernel's own memory

Two = tuple[Four, Four]  # of two rows of x
Three = tuple[Two, Four]
Five = tuple[Two, Two, Four]
Six = tuple[Two, Two, Two]
# What is prefetched: an address, the bytes from there to the next step's, the bytes between lines of a step, how many.
Fetch = tuple[int, int, int, int]
NONE: Fetch = (0, 0, 0, 0)


@inline
def _add_2(load: Inline, add: Inline, w: Four, x: int, step: int, sums: Two) -> Two:
    """Add the products of four vectors of the matrix with those of two rows of x, `step` bytes apart."""
    return tiles.add_four(add, sums[0], w, load(x)), tiles.add_four(add, sums[1], w, load(x + step))


@inline
def _add_3(load, add, w, x, step, sums):
    return _add_2(load, add, w, x, step, sums[0]), tiles.add_four(add, sums[1], w, load(x + 2 * step))


@inline
def _add_4(load, add, w, x, step, sums):
    return _add_2(load, add, w, x, step, sums[0]), _add_2(load, add, w, x + 2 * step, step, sums[1])


@inline
def _add_5(load, add, w, x, step, sums):
    return (
        _add_2(load, add, w, x, step, sums[0]),
        _add_2(load, add, w, x + 2 * step, step, sums[1]),
        tiles.add_four(add, sums[2], w, load(x + 4 * step)),
    )


@inline
def _add_6(load, add, w, x, step, sums):
    return (
        _add_2(load, add, w, x, step, sums[0]),
        _add_2(load, add, w, x + 2 * step, step, sums[1]),
        _add_2(load, add, w, x + 4 * step, step, sums[2]),
    )


@inline
def _begin_2() -> Two:
    return zeros(), zeros()


@inline
def _begin_3() -> Three:
    return _begin_2(), zeros()


@inline
def _begin_4() -> tuple[Two, Two]:
    return _begin_2(), _begin_2()


@inline
def _begin_5() -> Five:
    return _begin_2(), _begin_2(), zeros()


@inline
def _begin_6() -> Six:
    return _begin_2(), _begin_2(), _begin_2()


@inline
def _load_2(at: int) -> Two:
    return load_four(at), load_four(at + 256)


@inline
def _load_6(at: int) -> Six:
    return _load_2(at), _load_2(at + 512), _load_2(at + 1024)


@inline
def _store_6(at: int, sums: Six) -> None:
    for two in sums:
        store_four(at, two[0])
        store_four(at + 256, two[1])
        at += 512


# Add up the lanes of four sums for each row of x, and write them. While lanes are added, sums of other rows take the
# places that become free: that takes half the shuffles, on ports that products need, of one row after the other.


@inline
def _put_2(sums: Two, out: int, step: int, bias: int, left: int, adds: int) -> None:
    a, b = sums
    early = v.merge_4(v.merge_8(a[0], b[0]), v.merge_8(a[2], b[2]))
    late = v.merge_4(v.merge_8(a[1], b[1]), v.merge_8(a[3], b[3]))
    both = v.merge_2(early, late)
    both = v.merge_1(both, both)
    tiles.put_quad(v.first_evens(both), out, bias, left, adds)
    tiles.put_quad(v.last_evens(both), out + step, bias, left, adds)


@inline
def _merge_4(a: v.Vector, b: v.Vector, c: v.Vector, d: v.Vector) -> v.Vector:
    return v.merge_4(v.merge_8(a, c), v.merge_8(b, d))


@inline
def _put_3(sums: Three, out: int, step: int, bias: int, left: int, adds: int) -> None:
    _put_2(sums[0], out, step, bias, left, adds)
    tiles.put_four(sums[1], out + 2 * step, bias, left, adds)


@inline
def _put_4(sums: tuple[Two, Two], out: int, step: int, bias: int, left: int, adds: int) -> None:
    (a, b), (c, d) = sums
    even = v.merge_2(_merge_4(a[0], b[0], c[0], d[0]), _merge_4(a[2], b[2], c[2], d[2]))
    odd = v.merge_2(_merge_4(a[1], b[1], c[1], d[1]), _merge_4(a[3], b[3], c[3], d[3]))
    four = v.merge_1(even, odd)
    tiles.put_quad(v.first_quad(four), out, bias, left, adds)
    tiles.put_quad(v.second_quad(four), out + step, bias, left, adds)
    tiles.put_quad(v.third_quad(four), out + 2 * step, bias, left, adds)
    tiles.put_quad(v.fourth_quad(four), out + 3 * step, bias, left, adds)


@inline
def _put_5(sums: Five, out: int, step: int, bias: int, left: int, adds: int) -> None:
    _put_4((sums[0], sums[1]), out, step, bias, left, adds)
    tiles.put_four(sums[2], out + 4 * step, bias, left, adds)


@inline
def _put_6(sums: Six, out: int, step: int, bias: int, left: int, adds: int) -> None:
    _put_4((sums[0], sums[1]), out, step, bias, left, adds)
    _put_2(sums[2], out + 4 * step, step, bias, left, adds)


@inline
def _tile(load_w, load_x, add, add_rows, size, w, stride, x, x_stride, steps, fetch, begin):
    """Four rows of the matrix times some rows of x."""
    sums, (ahead, pitch, apart, lines) = begin, fetch
    for i in range(steps):
        weights = tiles.weights(load_w, w + size * i, stride)
        for line in range(lines):
            v.prefetch_line(ahead + pitch * i + apart * line)
        sums = add_rows(load_x, add, weights, x + 64 * i, x_stride, sums)
    return sums


def _rows(add_rows: Inline, begin: Inline, put: Inline, height: int) -> Inline:
    @inline
    def rows(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, fetch):
        """Four rows of the matrix times `height` rows of x, to the end."""
        size, x_stride, steps, rest, x_rest, n = shape
        sums = _tile(load_w, load_x, add, add_rows, size, w, stride, x, x_stride, steps, fetch, begin())
        if rest:
            tiles.pad(w + size * steps, stride, 4, rest, near)
            tiles.pad(x + 64 * steps, x_stride, height, x_rest, near + 256)
            sums = _tile(load_w, load_x, add, add_rows, size, near, 64, near + 256, 64, 1, NONE, sums)
        put(sums, out, 4 * n, bias, left, adds)

    return rows


_rows_2, _rows_3 = _rows(_add_2, _begin_2, _put_2, 2), _rows(_add_3, _begin_3, _put_3, 3)
_rows_4, _rows_5 = _rows(_add_4, _begin_4, _put_4, 4), _rows(_add_5, _begin_5, _put_5, 5)


@inline
def _rows_6(load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, fetch, panel, saved):
    """The same with six rows of x, over one panel of the columns, from step `panel` on."""
    size, x_stride, steps, rest, x_rest, n = shape
    count, (ahead, pitch, apart, lines) = min(PANEL, steps - panel), fetch
    later = ahead + pitch * panel, pitch, apart, lines
    begin, at, at_x = _load_6(saved) if panel else _begin_6(), w + size * panel, x + 64 * panel
    sums = _tile(load_w, load_x, add, _add_6, size, at, stride, at_x, x_stride, count, later, begin)
    if panel + count < steps:
        _store_6(saved, sums)
        return
    if rest:
        tiles.pad(w + size * steps, stride, 4, rest, near)
        tiles.pad(x + 64 * steps, x_stride, 6, x_rest, near + 256)
        sums = _tile(load_w, load_x, add, _add_6, size, near, 64, near + 256, 64, 1, NONE, sums)
    _put_6(sums, out, 4 * n, bias, left, adds)


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
