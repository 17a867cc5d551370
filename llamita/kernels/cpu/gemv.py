"""Matrix times few rows, with weights in fp32, fp16 or bf16 as torch lays them out; sums are fp32.

Must equal reference.few (F.linear of the same weights in fp32) up to the order of the sums.

Arguments: weight (N, K), x fp32 (B, K), out fp32 (B, N), bias fp32 (N,) or 0, N, K, B, weight rows of a chunk, whether
out is added to. N, K and B are any numbers.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline, kernel


@inline
def _dot(dtype, w, start, x, columns):
    """One row of weights with one x."""
    a = b = c = d = v.zero_fp32()
    i = 0
    while i + 64 <= columns:
        v.prefetch_ahead(w + e.size(dtype) * (start + i), 64 * e.size(dtype))
        a = v.fma(e.wide(dtype, w, start + i), v.load(x + 4 * i), a)
        b = v.fma(e.wide(dtype, w, start + i + 16), v.load(x + 4 * i + 64), b)
        c = v.fma(e.wide(dtype, w, start + i + 32), v.load(x + 4 * i + 128), c)
        d = v.fma(e.wide(dtype, w, start + i + 48), v.load(x + 4 * i + 192), d)
        i += 64
    while i + 16 <= columns:
        a = v.fma(e.wide(dtype, w, start + i), v.load(x + 4 * i), a)
        i += 16
    total = v.reduce_add(v.add(v.add(a, b), v.add(c, d)))
    while i < columns:
        total += e.one(dtype, w, start + i) * v.read_fp32(x + 4 * i)
        i += 1
    return total


@inline
def _four_dots(dtype, w, start, x, columns):
    """One row of weights with four x's, one behind the other: the weights are widened once."""
    a = b = c = d = v.zero_fp32()
    line = 4 * columns
    i = 0
    while i + 16 <= columns:
        weights, at = e.wide(dtype, w, start + i), x + 4 * i
        a = v.fma(weights, v.load(at), a)
        b = v.fma(weights, v.load(at + line), b)
        c = v.fma(weights, v.load(at + 2 * line), c)
        d = v.fma(weights, v.load(at + 3 * line), d)
        i += 16
    ta, tb, tc, td = v.reduce_add(a), v.reduce_add(b), v.reduce_add(c), v.reduce_add(d)
    while i < columns:
        weight, at = e.one(dtype, w, start + i), x + 4 * i
        ta += weight * v.read_fp32(at)
        tb += weight * v.read_fp32(at + line)
        tc += weight * v.read_fp32(at + 2 * line)
        td += weight * v.read_fp32(at + 3 * line)
        i += 1
    return ta, tb, tc, td


@inline
def put(to: int, value: float, bias: int, adds: int) -> None:
    """Write a sum, with its bias fp32, or 0 for none, onto what is there where it `adds`."""
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
def _linear(dtype, at, chunk):
    w, x, out, bias = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, rows, adds = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56), v.read(at + 64)
    for row in range(chunk * rows, min(n, (chunk + 1) * rows)):
        its_bias = bias + 4 * row if bias else 0
        for b in range(0, batch - 3, 4):
            to = out + 4 * (b * n + row)
            values = _four_dots(dtype, w, row * k, x + 4 * k * b, k)
            for j in range(4):
                put(to + 4 * n * j, values[j], its_bias, adds)
        for b in range(batch - batch % 4, batch):
            value = _dot(dtype, w, row * k, x + 4 * k * b, k)
            put(out + 4 * (b * n + row), value, its_bias, adds)


@kernel
def linear_fp32(at: int, chunk: int) -> None:
    """Weights in fp32."""
    _linear(e.FP32, at, chunk)


@kernel
def linear_bf16(at: int, chunk: int) -> None:
    """Weights in bf16."""
    _linear(e.BF16, at, chunk)


@kernel
def linear_fp16(at: int, chunk: int) -> None:
    """Weights in fp16."""
    _linear(e.FP16, at, chunk)
