"""Tiles of products with a plain matrix: some of its rows times some rows of x, with all sums in registers.

Must equal reference.product bit for bit. The order of sums: sixteen lanes take the columns in turn, in bf16 two at a
time, and one tree adds the lanes at the end.

Four rows of the matrix are multiplied with one row of x here, with several in `gemm_wide` and `gemm_narrow`.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Linear, offsets
from llamita.kernels.cpu.runtime.program import Inline, inline

AT = offsets(Linear)
AHEAD = 1 << 15  # bytes between what one row of x is multiplied with and what is prefetched then

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
def part_of(at: int, chunk: int) -> tuple[int, int, int, int]:
    """The part of a product that a chunk is: its first row of the matrix, the one after its last, and so of x."""
    n, batch = v.read(at + AT.rows), v.read(at + AT.batch)
    rows, lines = v.read(at + AT.rows_of_chunk), v.read(at + AT.batch_of_chunk)
    across = -(-n // rows)
    start, line = chunk % across * rows, chunk // across * lines
    return start, min(n, start + rows), line, min(batch, line + lines)


@inline
def weights(load: Inline, w: int, stride: int) -> Four:
    """The same columns of four rows of the matrix."""
    return load(w), load(w + stride), load(w + 2 * stride), load(w + 3 * stride)


@inline
def add_four(add: Inline, sums: Four, w: Four, x: v.Vector) -> Four:
    """Add the products of four vectors of the matrix with one of x."""
    a, b, c, d = sums
    return add(a, w[0], x), add(b, w[1], x), add(c, w[2], x), add(d, w[3], x)


@inline
def tile_1(
    load_w: Inline, load_x: Inline, add: Inline, size: int, w: int, stride: int, x: int, steps: int, ahead: int,
    begin: Four,
) -> Four:  # fmt: skip
    """Four rows of the matrix times one row of x: `steps` times as many columns as a vector holds.

    Memory is the limit, so what comes later is prefetched in the order of addresses, from `ahead` on. It goes to the
    second-level cache: four long rows and the next four do not fit the first.
    """
    a = begin
    for i in range(steps):
        its = weights(load_w, w + size * i, stride)
        for line in range(4):
            v.prefetch_line(ahead + 4 * size * i + 64 * line)
        a = add_four(add, a, its, load_x(x + 64 * i))
    return a


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
    """Add up the lanes of four sums, and write them, or fewer at the end of the matrix."""
    put_quad(v.reduce_add_4(sums[0], sums[1], sums[2], sums[3]), out, bias, left, adds)


@inline
def put_quad(total: v.Vector, out: int, bias: int, left: int, adds: int) -> None:
    """Write four sums, or fewer at the end of the matrix."""
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
    load_w: Inline, load_x: Inline, add: Inline, shape: Shape, w: int, stride: int, x: int, out: int, bias: int,
    left: int, adds: int, near: int,
) -> None:  # fmt: skip
    """Four rows of the matrix times one row of x, to the end."""
    size, x_stride, steps, rest, x_rest, _ = shape
    a = tile_1(load_w, load_x, add, size, w, stride, x, steps, w + AHEAD, zeros())
    if rest:
        pad(w + size * steps, stride, 4, rest, near)
        pad(x + 64 * steps, x_stride, 1, x_rest, near + 256)
        a = tile_1(load_w, load_x, add, size, near, 64, near + 256, 1, 0, a)
    put_four(a, out, bias, left, adds)
