"""The inner part of `gemm_narrow` for six rows of x and more: a tile is two rows of the matrix and six of x.

Must equal `gemm_tiles.rows_1` of each row of x, to the last bit. The twelve sums of a tile stay in registers. x is
converted to fp32 once for some rows of the matrix, and lies in the order in which tiles read it; so of eight vectors
that are loaded for twelve `fma` two have to be converted. The sixteen lanes of a sum do not meet before its end: lanes
0 to 7 come first, for all these rows, then lanes 8 to 15. So half of a row of x is read at a time, and stays in the
first-level cache even where it is long. Columns are taken in panels where there are many: those of these rows of the
matrix stay in the second-level cache for some groups of six rows of x, whose sums are in memory meanwhile.
"""

from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import half_lanes as h
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline

HEIGHT = 6  # rows of x
ROWS = 64  # of the matrix, for which x is converted once
PANEL = 48  # the most steps of a panel of columns: x and two rows of the matrix fit into the first-level cache
LINE = 32 * HEIGHT  # bytes of eight lanes of these rows of x
SAVED = PANEL * 2 * LINE  # where sums are in the memory that `multiply` works in, after x
GROUPS = 4  # of six rows of x, whose sums this memory holds between panels
TILE = 2 * LINE  # bytes of a tile's sums, in either half of the lanes

Two = tuple[v.Vector, v.Vector]  # of two rows of the matrix
Six = tuple[Two, Two, Two, Two, Two, Two]  # and six rows of x


@inline
def _widen(is_bf16: bool, x: int, stride: int, steps: int, to: int) -> None:
    """Eight lanes of six rows of x in fp32; of pairs of bf16 the second numbers of all rows, then the first ones.

    One row after the other, as memory gives a row faster than the same columns of six.
    """
    for row in range(HEIGHT):
        for i in range(steps):
            if is_bf16:
                words, at = h.load_words(x + row * stride + 64 * i), to + 2 * LINE * i + 32 * row
                h.store(at, h.high_bf16(words))
                h.store(at + LINE, h.low_bf16(words))
            else:
                h.store(to + LINE * i + 32 * row, h.load(x + row * stride + 64 * i))


@inline
def _begin(sums: int, is_first: bool) -> Six:
    """0, or the sums of an earlier panel."""
    if is_first:
        zero = h.zero()
        two = zero, zero
        return two, two, two, two, two, two
    return (
        (h.load(sums), h.load(sums + 32)), (h.load(sums + 64), h.load(sums + 96)),
        (h.load(sums + 128), h.load(sums + 160)), (h.load(sums + 192), h.load(sums + 224)),
        (h.load(sums + 256), h.load(sums + 288)), (h.load(sums + 320), h.load(sums + 352)),
    )  # fmt: skip


@inline
def _store(six: Six, to: int) -> None:
    for two in six:
        h.store(to, two[0])
        h.store(to + 32, two[1])
        to += 64


@inline
def _add_two(sums: Two, w: Two, x: int) -> Two:
    one = h.load(x)
    return h.fma(w[0], one, sums[0]), h.fma(w[1], one, sums[1])


@inline
def _add(sums: Six, w: Two, x: int) -> Six:
    """Add the products of a vector of two rows of the matrix with those of six rows of x."""
    a, b, c, d, e, f = sums
    return (
        _add_two(a, w, x), _add_two(b, w, x + 32), _add_two(c, w, x + 64),
        _add_two(d, w, x + 96), _add_two(e, w, x + 128), _add_two(f, w, x + 160),
    )  # fmt: skip


@inline
def _half_bf16(w: int, stride: int, x: int, steps: int, begin: Six) -> Six:
    """Eight lanes of a tile: pairs of bf16 of the matrix, x in fp32."""
    sums = begin
    for i in range(steps):
        at, its = w + 64 * i, x + 2 * LINE * i
        two = h.high_bf16(h.load_words(at)), h.high_bf16(h.load_words(at + stride))
        sums = _add(sums, two, its)
        at = h.again(at)
        two = h.low_bf16(h.load_words(at)), h.low_bf16(h.load_words(at + stride))
        sums = _add(sums, two, its + LINE)
    return sums


@inline
def _half_fp32(w: int, stride: int, x: int, steps: int, begin: Six) -> Six:
    """Eight lanes of a tile in fp32."""
    sums = begin
    for i in range(steps):
        at = w + 64 * i
        two = h.load(at), h.load(at + stride)
        sums = _add(sums, two, x + LINE * i)
    return sums


@inline
def _meet(early: int, late: Two) -> v.Vector:
    """Lanes 0 to 7, from memory, and lanes 8 to 15 of two sums added up to four lanes each."""
    return h.meet_4(h.add(h.load(early), late[0]), h.add(h.load(early + 32), late[1]))


@inline
def _put_two(pairs: v.Vector, out: int, step: int, bias: int, left: int, adds: int) -> None:
    """Write the sums of one or two rows of the matrix and two of x."""
    if left == 2:
        if bias:
            pairs = v.add_quads(pairs, h.load_pairs(bias, bias))
        if adds:
            pairs = v.add_quads(pairs, h.load_pairs(out, out + step))
        h.store_pairs(out, out + step, pairs)
        return
    tiles.put(out, v.extract_quad(pairs, 0), bias, adds)
    tiles.put(out + step, v.extract_quad(pairs, 2), bias, adds)


@inline
def _put(early: int, late: Six, out: int, step: int, bias: int, left: int, adds: int) -> None:
    """Add up the lanes of a tile's sums, as `simd.reduce_add` does, and write them."""
    a = h.meet_2(_meet(early, late[0]), _meet(early + 64, late[1]))
    b = h.meet_2(_meet(early + 128, late[2]), _meet(early + 192, late[3]))
    c = h.meet_2(_meet(early + 256, late[4]), _meet(early + 320, late[5]))
    four, two = h.meet_1(a, b), h.meet_1(c, c)
    _put_two(h.first_pairs(four), out, step, bias, left, adds)
    _put_two(h.last_pairs(four), out + 2 * step, step, bias, left, adds)
    _put_two(h.first_pairs(two), out + 4 * step, step, bias, left, adds)


@inline
def _prefetch(x: int, stride: int, first: int, last: int) -> None:
    """Prefetch some steps of six rows of x."""
    for row in range(HEIGHT):
        for i in range(first, last):
            v.prefetch_line(x + row * stride + 64 * i)


@inline
def _panel(is_bf16, shape, w, stride, rows, x, later, out, bias, adds, near, saved, panel, end):
    """Up to ROWS rows of the matrix times six rows of x, over the steps from `panel` to `end`.

    later: the address of the x that is next, which is prefetched meanwhile.
    """
    size, x_stride, steps, _, _, n = shape
    for lanes in range(0, v.hidden(64), 32):
        is_last = lanes == 32 and end == steps
        _widen(is_bf16, x + 64 * panel + lanes, x_stride, end - panel, near)
        for row in range(0, rows, 2):
            left = min(2, rows - row)
            at, step = w + row * stride + size * panel + lanes, stride if left == 2 else 0
            if lanes:
                _prefetch(later, x_stride, (end - panel) * row // rows, (end - panel) * (row + 2) // rows)
            early = saved + TILE * row
            sums = early + (TILE if lanes else 0)
            begin = _begin(sums, panel == 0)
            if is_bf16:
                six = _half_bf16(at, step, near, end - panel, begin)
            else:
                six = _half_fp32(at, step, near, end - panel, begin)
            if is_last:
                _put(early, six, out + 4 * row, 4 * n, bias + 4 * row if bias else 0, left, adds)
            else:
                _store(six, sums)


@inline
def _multiply(is_bf16, shape, w, stride, rows, x, groups, out, bias, adds, near):
    """Up to ROWS rows of the matrix."""
    _, x_stride, steps, _, _, n = shape
    panels = -(-steps // PANEL)
    for number in range(panels):
        panel, end = steps * number // panels, steps * (number + 1) // panels
        for group in range(groups):
            saved, row = near + SAVED + (ROWS * TILE * group if panels > 1 else 0), HEIGHT * group
            later = x + (row + HEIGHT) * x_stride + 64 * panel if group + 1 < groups else x + 64 * end
            _panel(
                is_bf16, shape, w, stride, rows, x + row * x_stride, later, out + 4 * row * n, bias, adds, near,
                saved, panel, end,
            )  # fmt: skip


@inline
def multiply(
    is_bf16: bool, shape: tiles.Shape, w: int, stride: int, rows: int, x: int, groups: int, out: int, bias: int,
    adds: int, near: int,
) -> None:  # fmt: skip
    """`rows` rows of the matrix times six rows of x for each of up to GROUPS groups.

    There are no columns after the last step.
    """
    for row in range(0, rows, ROWS):
        its_bias = bias + 4 * row if bias else 0
        _multiply(
            is_bf16, shape, w + row * stride, stride, min(ROWS, rows - row), x, groups, out + 4 * row, its_bias, adds,
            near,
        )  # fmt: skip
