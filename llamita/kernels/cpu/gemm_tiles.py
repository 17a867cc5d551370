"""Tiles of products with a plain matrix: some of its rows times some rows of x, with all sums in registers.

Must equal reference.product bit for bit. The order of sums: sixteen lanes take the columns in turn, in bf16 two at a
time, and one tree adds the lanes at the end.

Four rows of the matrix are multiplied with one, two or six rows of x at a time: the sums of six fill 24 of the 32
registers of AVX-512. Columns are taken in panels where there are many, so that six rows of x stay in the caches.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
WIDE = 6  # rows of x of the largest tile
PANEL = 128  # steps of a panel of columns

Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]  # of four rows of the matrix
# Bytes of a step of the matrix and of a row of x, steps, bytes of the matrix and of x after the last step, N.
Shape = tuple[int, int, int, int, int, int]


@inline
def words_of(at: int) -> v.Vector:
    """Thirty-two columns in bf16."""
    return v.load_words(at)


@inline
def floats_of(at: int) -> v.Vector:
    """Sixteen columns in fp32."""
    return v.load(at)


@inline
def halves_of(at: int) -> v.Vector:
    """Sixteen columns in fp16."""
    return v.load_fp16(at)


@inline
def add_words(total: v.Vector, w: v.Vector, x: v.Vector) -> v.Vector:
    """Add the products of pairs of bf16: the second of each pair first, as the instruction does."""
    return v.dot_bf16(total, w, x)


@inline
def add_floats(total: v.Vector, w: v.Vector, x: v.Vector) -> v.Vector:
    """Add products of fp32."""
    return v.fma(w, x, total)


@inline
def zeros() -> Four:
    """Sums that begin with 0."""
    zero = v.zero_fp32()
    return zero, zero, zero, zero


@inline
def load_four(at: int) -> Four:
    """Four vectors from memory."""
    return v.load(at), v.load(at + 64), v.load(at + 128), v.load(at + 192)


@inline
def store_four(at: int, sums: Four) -> None:
    """Four vectors to memory."""
    for vector in sums:
        v.store(at, vector)
        at += 64


@inline
def _weights(load: Inline, w: int, stride: int) -> Four:
    return load(w), load(w + stride), load(w + 2 * stride), load(w + 3 * stride)


@inline
def _add(add: Inline, sums: Four, w: Four, x: v.Vector) -> Four:
    a, b, c, d = sums
    return add(a, w[0], x), add(b, w[1], x), add(c, w[2], x), add(d, w[3], x)


@inline
def _prefetch(w: int, stride: int, ahead: int) -> None:
    """Prefetch the same columns of later rows: with few rows of x, memory is the limit.

    It goes to the second-level cache: four long rows and the next four do not fit the first.
    """
    for i in range(4):
        v.prefetch_line(w + i * stride + ahead)


@inline
def tile_1(
    load_w: Inline, load_x: Inline, add: Inline, size: int, w: int, stride: int, x: int, x_stride: int, steps: int,
    ahead: int, begin: Four,
) -> Four:  # fmt: skip
    """Four rows of the matrix times one row of x: `steps` times as many columns as a vector holds."""
    a = begin
    for i in range(steps):
        weights = _weights(load_w, w + size * i, stride)
        _prefetch(w + size * i, stride, ahead)
        a = _add(add, a, weights, load_x(x + 64 * i))
    return a


@inline
def _tile_2(load_w, load_x, add, size, w, stride, x, x_stride, steps, ahead, begin):
    """The same with two rows of x."""
    a, b = begin
    for i in range(steps):
        weights = _weights(load_w, w + size * i, stride)
        _prefetch(w + size * i, stride, ahead)
        a = _add(add, a, weights, load_x(x + 64 * i))
        b = _add(add, b, weights, load_x(x + 64 * i + x_stride))
    return a, b


@inline
def _tile_6(load_w, load_x, add, size, w, stride, x, x_stride, steps, ahead, begin):
    """The same with six: here products are the limit, so nothing is prefetched."""
    a, b, c, d, e, f = begin
    for i in range(steps):
        weights, at = _weights(load_w, w + size * i, stride), x + 64 * i
        a = _add(add, a, weights, load_x(at))
        b = _add(add, b, weights, load_x(at + x_stride))
        c = _add(add, c, weights, load_x(at + 2 * x_stride))
        d = _add(add, d, weights, load_x(at + 3 * x_stride))
        e = _add(add, e, weights, load_x(at + 4 * x_stride))
        f = _add(add, f, weights, load_x(at + 5 * x_stride))
    return a, b, c, d, e, f


@inline
def put(to: int, value: float, bias: int, adds: int) -> None:
    """Write a sum with its bias fp32 (0: no bias); where it `adds`, add it to the number in memory."""
    if bias:
        value += v.read_fp32(bias)
    if adds:
        value += v.read_fp32(to)
    v.write_fp32(to, value)


@inline
def put_wide(to: int, value: v.Vector, bias: int, adds: int) -> None:
    """Sixteen of them."""
    if bias:
        value = v.add(value, v.load(bias))
    if adds:
        value = v.add(value, v.load(to))
    v.store(to, value)


@inline
def put_four(sums: Four, out: int, bias: int, left: int, adds: int) -> None:
    """Write four sums, or fewer at the end of the matrix."""
    total = v.reduce_add_4(sums[0], sums[1], sums[2], sums[3])
    if left >= 4:
        if bias:
            total = v.add_quads(total, v.load_quad(bias))
        if adds:
            total = v.add_quads(total, v.load_quad(out))
        v.store_quad(out, total)
        return
    for i in range(left):
        put(out + 4 * i, v.extract_quad(total, i), bias + 4 * i if bias else 0, adds)


@inline
def pad(at: int, stride: int, rows: int, size: int, to: int) -> None:
    """Copy `size` bytes of some rows, each to its own 64 bytes, which are filled up with 0."""
    for row in range(rows):
        v.store(to + 64 * row, v.zero_fp32())
        for i in range(0, size, 2):
            v.copy_2_bytes(at + row * stride + i, to + 64 * row + i)


@inline
def rows_1(
    load_w: Inline, load_x: Inline, add: Inline, shape: Shape, w: int, stride: int, ahead: int, x: int, out: int,
    bias: int, left: int, adds: int, near: int,
) -> None:  # fmt: skip
    """Four rows of the matrix times one row of x, to the end."""
    size, x_stride, steps, rest, x_rest, _ = shape
    a = tile_1(load_w, load_x, add, size, w, stride, x, x_stride, steps, ahead, zeros())
    if rest:
        pad(w + size * steps, stride, 4, rest, near)
        pad(x + 64 * steps, x_stride, 1, x_rest, near + 256)
        a = tile_1(load_w, load_x, add, size, near, 64, near + 256, 64, 1, 0, a)
    put_four(a, out, bias, left, adds)


@inline
def _rows_2(load_w, load_x, add, shape, w, stride, ahead, x, out, bias, left, adds, near):
    """The same with two rows of x."""
    size, x_stride, steps, rest, x_rest, n = shape
    both = _tile_2(load_w, load_x, add, size, w, stride, x, x_stride, steps, ahead, (zeros(), zeros()))
    if rest:
        pad(w + size * steps, stride, 4, rest, near)
        pad(x + 64 * steps, x_stride, 2, x_rest, near + 256)
        both = _tile_2(load_w, load_x, add, size, near, 64, near + 256, 64, 1, 0, both)
    for sums in both:
        put_four(sums, out, bias, left, adds)
        out += 4 * n


@inline
def _load_6(at):
    return (
        load_four(at),
        load_four(at + 256),
        load_four(at + 512),
        load_four(at + 768),
        load_four(at + 1024),
        load_four(at + 1280),
    )


@inline
def _rows_6(load_w, load_x, add, shape, w, stride, ahead, x, out, bias, left, adds, near, panel, saved):
    """The same with six rows of x, over one panel of the columns, from step `panel` on."""
    size, x_stride, steps, rest, x_rest, n = shape
    count = min(PANEL, steps - panel)
    begin = _load_6(saved) if panel else (zeros(), zeros(), zeros(), zeros(), zeros(), zeros())
    at, its_x = w + size * panel, x + 64 * panel
    six = _tile_6(load_w, load_x, add, size, at, stride, its_x, x_stride, count, ahead, begin)
    if panel + count < steps:
        for sums in six:
            store_four(saved, sums)
            saved += 256
        return
    if rest:
        pad(w + size * steps, stride, 4, rest, near)
        pad(x + 64 * steps, x_stride, 6, x_rest, near + 256)
        six = _tile_6(load_w, load_x, add, size, near, 64, near + 256, 64, 1, 0, six)
    for sums in six:
        put_four(sums, out, bias, left, adds)
        out += 4 * n


@inline
def linear(
    load_w: Inline, load_x: Inline, add: Inline, span: int, element: int, x_element: int, at: int, chunk: int
) -> None:
    """span: columns of a step. element, x_element: bytes of a column of the matrix and of x."""
    w, x, out, bias = v.read(at + AT.weight), v.read(at + AT.x), v.read(at + AT.out), v.read(at + AT.bias)
    n, k, batch, adds = v.read(at + AT.rows), v.read(at + AT.columns), v.read(at + AT.batch), v.read(at + AT.adds)
    rows, lines = v.read(at + AT.rows_of_chunk), v.read(at + AT.batch_of_chunk)
    across = -(-n // rows)
    start, line = chunk % across * rows, chunk // across * lines
    end, last = min(n, start + rows), min(batch, line + lines)
    steps, stride, near = k // span, k * element, v.stack()
    shape = (span * element, k * x_element, steps, k % span * element, k % span * x_element, n)
    while line < last:
        count = last - line
        height = WIDE if count >= WIDE else (2 if count >= 2 else 1)
        for panel in range(0, max(1, steps) if height == WIDE else 1, PANEL):
            row, saved = start, near + 1024
            while row < end:
                is_whole = row + 4 <= end
                left, step = (4, stride) if is_whole else (1, 0)
                its, its_x, to = w + row * stride, x + line * shape[1], out + 4 * (line * n + row)
                its_bias = bias + 4 * row if bias else 0
                if height == WIDE:
                    _rows_6(
                        load_w, load_x, add, shape, its, step, 8 * stride, its_x, to, its_bias, left, adds, near,
                        panel, saved,
                    )  # fmt: skip
                elif height == 2:
                    _rows_2(
                        load_w, load_x, add, shape, its, step, 8 * stride, its_x, to, its_bias, left, adds, near
                    )  # fmt: skip
                else:
                    rows_1(
                        load_w, load_x, add, shape, its, step, 8 * stride, its_x, to, its_bias, left, adds, near
                    )  # fmt: skip
                row, saved = row + left, saved + 256 * WIDE
        line += height
