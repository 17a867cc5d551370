"""Products with a plain matrix on processors whose registers hold eight lanes, sixteen of them (AVX2).

Must equal `gemm_tiles.linear` bit for bit. The sixteen lanes of a sum do not meet before its end, so a tile of four
rows of the matrix and two of x goes over the columns of lanes 0 to 7, then over those of lanes 8 to 15, and its eight
sums stay in registers. x in bf16 is converted to fp32 once for all rows of the matrix: for each step the second numbers
of pairs, then the first ones, in the order of the additions.
"""

from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import half_lanes as h
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
HEIGHT = 2  # rows of x of a tile
PANEL = 32  # steps of a panel of columns
PLANE = 128 * PANEL  # bytes of a row of x in fp32
ROOM, SAVED = 1024, 1024 + HEIGHT * PLANE  # of the kernel's own memory: where x in fp32 is, and where sums are

Eight = tuple[v.Vector, ...]


@inline
def _widen(x: int, x_stride: int, steps: int, to: int) -> None:
    """Two rows of pairs of bf16 as fp32: of sixteen pairs the second numbers, then the first."""
    for row in range(HEIGHT):
        for i in range(steps):
            words, at = v.load_words(x + row * x_stride + 64 * i), to + row * PLANE + 128 * i
            v.store(at, v.high_bf16(words))
            v.store(at + 64, v.low_bf16(words))


@inline
def _begin(sums: int, is_first: bool) -> Eight:
    """0, or the sums of an earlier panel."""
    if is_first:
        zero = h.zero()
        return zero, zero, zero, zero, zero, zero, zero, zero
    return (
        h.load(sums), h.load(sums + 64), h.load(sums + 128), h.load(sums + 192),
        h.load(sums + 256), h.load(sums + 320), h.load(sums + 384), h.load(sums + 448),
    )  # fmt: skip


@inline
def _add(sums: Eight, w: tuple[v.Vector, ...], x: int, stride: int) -> Eight:
    """Add the products of four vectors of the matrix with the vectors of two rows of x."""
    one, two = h.load(x), h.load(x + stride)
    a, b, c, d, e, f, g, i = sums
    p, q, r, s = w
    return (
        h.fma(p, one, a), h.fma(q, one, b), h.fma(r, one, c), h.fma(s, one, d),
        h.fma(p, two, e), h.fma(q, two, f), h.fma(r, two, g), h.fma(s, two, i),
    )  # fmt: skip


@inline
def _half_bf16(w: int, stride: int, x: int, steps: int, begin: Eight) -> Eight:
    """Eight lanes of a tile: pairs of bf16 of the matrix, x in fp32."""
    sums = begin
    for i in range(steps):
        at, its_x = w + 64 * i, x + 128 * i
        p, q = h.load_words(at), h.load_words(at + stride)
        r, s = h.load_words(at + 2 * stride), h.load_words(at + 3 * stride)
        sums = _add(sums, (h.high_bf16(p), h.high_bf16(q), h.high_bf16(r), h.high_bf16(s)), its_x, PLANE)
        sums = _add(sums, (h.low_bf16(p), h.low_bf16(q), h.low_bf16(r), h.low_bf16(s)), its_x + 64, PLANE)
    return sums


@inline
def _half_fp32(w: int, stride: int, x: int, x_stride: int, steps: int, begin: Eight) -> Eight:
    """Eight lanes of a tile in fp32."""
    sums = begin
    for i in range(steps):
        at = w + 64 * i
        four = (h.load(at), h.load(at + stride), h.load(at + 2 * stride), h.load(at + 3 * stride))
        sums = _add(sums, four, x + 64 * i, x_stride)
    return sums


@inline
def _rows_2(is_bf16, load_w, load_x, add, shape, w, stride, x, out, bias, left, adds, near, panel, sums):
    """Four rows of the matrix times two rows of x, over a panel of columns from step `panel` on."""
    size, x_stride, steps, rest, x_rest, n = shape
    count = min(PANEL, steps - panel)
    for lanes in range(0, 64, 32):
        begin = _begin(sums + lanes, panel == 0)
        if is_bf16:
            eight = _half_bf16(w + size * panel + lanes, stride, near + ROOM + lanes, count, begin)
        else:
            eight = _half_fp32(w + size * panel + lanes, stride, x + 64 * panel + lanes, x_stride, count, begin)
        to = sums + lanes
        for vector in eight:
            h.store(to, vector)
            to += 64
    if panel + count < steps:
        return
    if rest:
        tiles.pad(w + size * steps, stride, 4, rest, near)
        tiles.pad(x + 64 * steps, x_stride, HEIGHT, x_rest, near + 256)
    for row in range(HEIGHT):
        four = tiles.load_four(sums + 256 * row)
        if rest:
            four = tiles.tile_1(load_w, load_x, add, size, near, 64, near + 256 + 64 * row, 64, 1, 0, four)
        tiles.put_four(four, out + 4 * n * row, bias, left, adds)


@inline
def linear(
    is_bf16: bool, load_w: Inline, load_x: Inline, add: Inline, span: int, element: int, x_element: int, at: int,
    chunk: int,
) -> None:  # fmt: skip
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
        height, its_x = HEIGHT if last - line >= HEIGHT else 1, x + line * shape[1]
        for panel in range(0, max(1, steps) if height == HEIGHT else 1, PANEL):
            if is_bf16 and height == HEIGHT:
                _widen(its_x + 64 * panel, shape[1], min(PANEL, steps - panel), near + ROOM)
            row, sums = start, near + SAVED
            while row < end:
                left, step = (4, stride) if row + 4 <= end else (1, 0)
                its, to, its_bias = w + row * stride, out + 4 * (line * n + row), bias + 4 * row if bias else 0
                if height == HEIGHT:
                    _rows_2(
                        is_bf16, load_w, load_x, add, shape, its, step, its_x, to, its_bias, left, adds, near,
                        panel, sums,
                    )  # fmt: skip
                else:
                    tiles.rows_1(
                        load_w, load_x, add, shape, its, step, 8 * stride, its_x, to, its_bias, left, adds, near
                    )  # fmt: skip
                row += left
                sums += 256 * HEIGHT if steps > PANEL else 0
        line += height
