"""Products with a plain matrix on processors whose registers hold eight lanes, sixteen of them (AVX2).

Must equal reference.product bit for bit. Six rows of x at a time are multiplied by `gemm_six`, fewer here. The sixteen
lanes of a sum do not meet before its end, so a tile of four rows of the matrix and three of x goes over the columns of
lanes 0 to 7, then over those of lanes 8 to 15, and its twelve sums stay in registers: as many as hide the time that
`fma` takes. x is converted to fp32 once for some rows of the matrix: of pairs of bf16 for each step the second numbers,
then the first ones, in the order of the additions.
"""

from llamita.kernels.cpu import gemm_six as six
from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import half_lanes as h
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
HEIGHT = 3  # rows of x of a tile
PANEL = 24  # steps of a panel of columns: of x and of the matrix both stay in the first-level cache
PLANE = 128 * PANEL  # bytes of a row of x in fp32
MASKS, ROOM = 512, 1024  # of the kernel's own memory: where masks are, where x in fp32 is
SAVED = ROOM + HEIGHT * PLANE  # and where sums are

Three = tuple[v.Vector, v.Vector, v.Vector]  # of three rows of x
Twelve = tuple[Three, Three, Three, Three]  # and four rows of the matrix


@inline
def _widen(is_bf16: bool, x: int, x_stride: int, rows: int, steps: int, to: int) -> None:
    """Rows of x in fp32; of sixteen pairs of bf16 the second numbers, then the first."""
    for row in range(rows):
        for i in range(steps):
            if is_bf16:
                words, at = v.load_words(x + row * x_stride + 64 * i), to + row * PLANE + 128 * i
                v.store(at, v.high_bf16(words))
                v.store(at + 64, v.low_bf16(words))
            else:
                v.store(to + row * PLANE + 64 * i, v.load(x + row * x_stride + 64 * i))


@inline
def _three(at: int, step: int, last: int) -> Three:
    return h.load(at), h.load(at + step), h.load(at + last)


@inline
def _begin(sums: int, is_first: bool) -> Twelve:
    """0, or the sums of an earlier panel."""
    if is_first:
        zero = h.zero()
        three = zero, zero, zero
        return three, three, three, three
    return (
        _three(sums, 256, 512), _three(sums + 64, 256, 512),
        _three(sums + 128, 256, 512), _three(sums + 192, 256, 512),
    )  # fmt: skip


@inline
def _add(sums: Three, w: v.Vector, x: Three) -> Three:
    """Add the products of a vector of the matrix with those of three rows of x."""
    return h.fma(w, x[0], sums[0]), h.fma(w, x[1], sums[1]), h.fma(w, x[2], sums[2])


@inline
def _half_bf16(masks: int, w: int, stride: int, x: int, last: int, steps: int, begin: Twelve) -> Twelve:
    """Eight lanes of a tile: pairs of bf16 of the matrix, x in fp32."""
    a, b, c, d = begin
    for i in range(steps):
        at, its, high = w + 64 * i, x + 128 * i, h.again(masks)
        three = _three(its, PLANE, last)
        a, b = _add(a, h.load_high_bf16(at, high), three), _add(b, h.load_high_bf16(at + stride, high + 32), three)
        c = _add(c, h.load_high_bf16(at + 2 * stride, high + 64), three)
        d = _add(d, h.load_high_bf16(at + 3 * stride, high + 96), three)
        at = h.again(at)
        three = _three(its + 64, PLANE, last)
        a, b = _add(a, h.low_bf16(h.load_words(at)), three), _add(b, h.low_bf16(h.load_words(at + stride)), three)
        c = _add(c, h.low_bf16(h.load_words(at + 2 * stride)), three)
        d = _add(d, h.low_bf16(h.load_words(at + 3 * stride)), three)
    return a, b, c, d


@inline
def _half_fp32(w: int, stride: int, x: int, last: int, steps: int, begin: Twelve) -> Twelve:
    """Eight lanes of a tile in fp32."""
    a, b, c, d = begin
    for i in range(steps):
        at, three = w + 64 * i, _three(x + 64 * i, PLANE, last)
        a, b = _add(a, h.load(at), three), _add(b, h.load(at + stride), three)
        c, d = _add(c, h.load(at + 2 * stride), three), _add(d, h.load(at + 3 * stride), three)
    return a, b, c, d


@inline
def _store(twelve: Twelve, to: int) -> None:
    for three in twelve:
        h.store(to, three[0])
        h.store(to + 256, three[1])
        h.store(to + 512, three[2])
        to += 64


@inline
def _tile(is_bf16, load_w, load_x, add, shape, w, stride, x, rows, out, bias, left, adds, near, wide, panel, sums):
    """Four rows of the matrix times two or three rows of x, over a panel of columns from step `panel` on.

    wide: where these rows of x are in fp32. With two rows, the second stands for a third too.
    """
    size, x_stride, steps, rest, x_rest, n = shape
    count, last = min(PANEL, steps - panel), PLANE * (rows - 1)
    for lanes in range(0, v.hidden(64), 32):
        begin, at = _begin(sums + lanes, panel == 0), w + size * panel + lanes
        if is_bf16:
            twelve = _half_bf16(near + MASKS, at, stride, wide + lanes, last, count, begin)
        else:
            twelve = _half_fp32(at, stride, wide + lanes, last, count, begin)
        _store(twelve, sums + lanes)
    if panel + count < steps:
        return
    if rest:
        tiles.pad(w + size * steps, stride, 4, rest, near)
        tiles.pad(x + 64 * steps, x_stride, rows, x_rest, near + 256)
    for row in range(rows):
        four = tiles.load_four(sums + 256 * row)
        if rest:
            four = tiles.tile_1(load_w, load_x, add, size, near, 64, near + 256 + 64 * row, 1, 0, four)
        tiles.put_four(four, out + 4 * n * row, bias, left, adds)


@inline
def _sixes(count: int, rest: int) -> int:
    """How many times six of the rows of x that are left are next, so that none is left alone."""
    return 0 if rest else min(six.GROUPS, max(0, count - 7 * (count % six.HEIGHT == 1)) // six.HEIGHT)


@inline
def _height(count: int) -> int:
    """How many rows of x are next where they are not taken by six."""
    return min(count, HEIGHT if count % 2 else 2)


@inline
def _few(is_bf16, load_w, load_x, add, shape, w, stride, rows, x, height, out, bias, adds, near):
    """Some rows of the matrix times two or three rows of x."""
    _, x_stride, steps, _, _, _ = shape
    wide = h.again(near + ROOM)  # or LLVM keeps a pointer for each of its places, and has no registers for that
    for panel in range(0, max(1, steps), PANEL):
        _widen(is_bf16, x + 64 * panel, x_stride, height, min(PANEL, steps - panel), wide)
        row, sums = 0, near + SAVED
        while row < rows:
            left, step = (4, stride) if row + 4 <= rows else (1, 0)
            _tile(
                is_bf16, load_w, load_x, add, shape, w + row * stride, step, x, height, out + 4 * row,
                bias + 4 * row if bias else 0, left, adds, near, wide, panel, sums,
            )  # fmt: skip
            row += left
            sums += 256 * HEIGHT if steps > PANEL else 0


@inline
def _one(load_w, load_x, add, shape, w, stride, rows, x, out, bias, adds, near):
    """Some rows of the matrix times one row of x."""
    row = 0
    while row < rows:
        left, step = (4, stride) if row + 4 <= rows else (1, 0)
        its, its_bias = w + row * stride, bias + 4 * row if bias else 0
        tiles.rows_1(load_w, load_x, add, shape, its, step, x, out + 4 * row, its_bias, left, adds, near)
        row += left


@inline
def linear(
    is_bf16: bool, load_w: Inline, load_x: Inline, add: Inline, span: int, element: int, x_element: int, at: int,
    chunk: int,
) -> None:  # fmt: skip
    """span: columns of a step. element, x_element: bytes of a column of the matrix and of x."""
    w, x, out, bias = v.read(at + AT.weight), v.read(at + AT.x), v.read(at + AT.out), v.read(at + AT.bias)
    n, k, adds = v.read(at + AT.rows), v.read(at + AT.columns), v.read(at + AT.adds)
    start, end, line, last = tiles.part_of(at, chunk)
    rest, stride, near, rows = k % span, k * element, v.stack(), end - start
    shape = (span * element, k * x_element, k // span, rest * element, rest * x_element, n)
    w, out, bias = w + start * stride, out + 4 * start, bias + 4 * start if bias else 0
    h.put_masks(near + MASKS)
    while line < last:
        groups, its, to = _sixes(last - line, rest), x + line * shape[1], out + 4 * line * n
        height = six.HEIGHT * groups if groups else _height(last - line)
        if groups:
            six.multiply(is_bf16, shape, w, stride, rows, its, groups, to, bias, adds, near + ROOM)
        elif height > 1:
            _few(is_bf16, load_w, load_x, add, shape, w, stride, rows, its, height, to, bias, adds, near)
        else:
            _one(load_w, load_x, add, shape, w, stride, rows, its, to, bias, adds, near)
        line += height
