"""Elementwise kernels between the products: embedding, norm, gate, and the rounding of activations for products.

Must equal norm, gate and quantize_activations of `reference` bit for bit. Their arguments are structs of `arguments`.
"""

import math

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Embed, Exponentials, Gate, Norm, Round, offsets
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.functions import exponential, silu_times
from llamita.kernels.cpu.q8_blocks import quantize_blocks, quantize_q8
from llamita.kernels.cpu.runtime.program import inline, kernel

EMBED, NORM, GATE, ROUND = offsets(Embed), offsets(Norm), offsets(Gate), offsets(Round)
EXPONENTIALS = offsets(Exponentials)


@inline
def round_to_halves(x: int, count: int, halves: int) -> None:
    """Write x fp32 (count,) as bf16."""
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        v.store_bf16(halves + 2 * i, v.load(x + 4 * i))
    for i in range(whole, count):
        v.write_bf16(halves + 2 * i, v.read_fp32(x + 4 * i))


@inline
def put_rounded(x: int, start: int, count: int, halves: int, q8_blocks: int) -> None:
    """Write x fp32, from element `start` on, as halves and as q8_blocks, if their addresses are given."""
    if halves:
        round_to_halves(x, count, halves + 2 * start)
    if q8_blocks:
        quantize_q8(x, count, q8_blocks + start // 32 * Q8_BLOCK)


@inline
def put_rounded_rows(x: int, start: int, width: int, step: int, count: int, halves: int, q8_blocks: int) -> None:
    """The same of `count` rows (width,), whose first elements are `step` apart, and the first of all is `start`."""
    for row in range(count if halves else 0):
        round_to_halves(x + 4 * step * row, width, halves + 2 * (start + step * row))
    for column in range(0, width if q8_blocks else 0, 32):
        to = q8_blocks + (start + column) // 32 * Q8_BLOCK
        quantize_blocks(x + 4 * column, 4 * step, to, step // 32 * Q8_BLOCK, count)


@inline
def _embed(dtype, at, chunk):
    ids, table = v.read(at + EMBED.ids), v.read(at + EMBED.table)
    out, width = v.read(at + EMBED.out), v.read(at + EMBED.columns)
    start, to, whole = v.read(ids + 8 * chunk) * width, out + 4 * width * chunk, width // 16 * 16
    for i in range(0, whole, 16):
        v.store(to + 4 * i, e.wide(dtype, table, start + i))
    for i in range(whole, width):
        v.write_fp32(to + 4 * i, e.one(dtype, table, start + i))


@kernel
def embed_fp32(at: int, chunk: int) -> None:
    """A table in fp32."""
    _embed(e.FP32, at, chunk)


@kernel
def embed_bf16(at: int, chunk: int) -> None:
    """A table in bf16."""
    _embed(e.BF16, at, chunk)


@kernel
def embed_fp16(at: int, chunk: int) -> None:
    """A table in fp16."""
    _embed(e.FP16, at, chunk)


@inline
def _scale_row(dtype, x, weight, factor, width, to):
    whole, factors = width // 16 * 16, v.broadcast(factor)
    for i in range(0, whole, 16):
        v.store(to + 4 * i, v.mul(e.wide(dtype, weight, i), v.mul(v.load(x + 4 * i), factors)))
    for i in range(whole, width):
        v.write_fp32(to + 4 * i, e.one(dtype, weight, i) * (v.read_fp32(x + 4 * i) * v.extract_first(factors)))


@kernel
def norm(at: int, chunk: int) -> None:
    """RMSNorm. Squares are added as columns of a product are; the root and its inverse are fp64, rounded once."""
    x, weight, out = v.read(at + NORM.x), v.read(at + NORM.weight), v.read(at + NORM.out)
    width, which = v.read(at + NORM.columns), v.read(at + NORM.which)
    x += 4 * width * (v.read(which + 8 * chunk) if which else chunk)
    squares = v.zero_fp32()
    for i in range(0, width, 16):
        value = v.load_some(x + 4 * i, min(16, width - i))
        squares = v.fma(value, value, squares)
    factor = 1.0 / math.sqrt(v.reduce_add(squares) / width + v.read_fp32(at + NORM.epsilon))
    to, dtype = out + 4 * width * chunk, v.read(at + NORM.dtype)
    if dtype == e.FP32:
        _scale_row(e.FP32, x, weight, factor, width, to)
    elif dtype == e.BF16:
        _scale_row(e.BF16, x, weight, factor, width, to)
    else:
        _scale_row(e.FP16, x, weight, factor, width, to)
    put_rounded(to, width * chunk, width, v.read(at + NORM.halves), v.read(at + NORM.q8_blocks))


@kernel
def gate(at: int, chunk: int) -> None:
    """silu(gate) * up."""
    first, second, out = v.read(at + GATE.gate), v.read(at + GATE.up), v.read(at + GATE.out)
    size = v.read(at + GATE.chunk)
    start, end = chunk * size, min(v.read(at + GATE.size), (chunk + 1) * size)
    for i in range(start, end, 16):
        count = min(16, end - i)
        x = silu_times(v.load_some(first + 4 * i, count), v.load_some(second + 4 * i, count))
        v.store_some(out + 4 * i, x, count)
    put_rounded(out + 4 * start, start, end - start, v.read(at + GATE.halves), v.read(at + GATE.q8_blocks))


@kernel
def round_rows(at: int, chunk: int) -> None:
    """x as halves or q8_blocks."""
    size = v.read(at + ROUND.chunk)
    start, end = chunk * size, min(v.read(at + ROUND.size), (chunk + 1) * size)
    put_rounded(
        v.read(at + ROUND.x) + 4 * start, start, end - start, v.read(at + ROUND.halves), v.read(at + ROUND.q8_blocks)
    )


@kernel
def exponentials(at: int, chunk: int) -> None:
    """Exponentials of logits, for a draw."""
    columns = v.read(at + EXPONENTIALS.columns)
    x, out = v.read(at + EXPONENTIALS.x) + 4 * columns * chunk, v.read(at + EXPONENTIALS.out) + 4 * columns * chunk
    most = v.broadcast(v.read_fp32(v.read(at + EXPONENTIALS.most) + 4 * chunk))
    for i in range(0, columns, 16):
        count = min(16, columns - i)
        v.store_some(out + 4 * i, exponential(v.sub(v.load_some(x + 4 * i, count), most)), count)
