"""What stands between the products: embedding, norm, gate, angles, and activations in bytes.

Must equal norm, gate, angles and quantize_activations of `reference`; bytes exactly, the others to the last places.

`x` in bytes: 32 columns are a record of 48 bytes: 32 int8, their scale in fp32, and minus the sums of the first
sixteen, of the last sixteen and of all in int32 (kernels for unsigned codes subtract a multiple of these).
"""

import math

import numpy as np

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.runtime.program import inline, kernel


@inline
def exponential(x: v.Vector) -> v.Vector:
    """e to the power of sixteen fp32, to about one unit in the last place; 0 far below, at most e**88."""
    x = v.max(v.broadcast(-104.0), v.min(v.broadcast(88.0), x))
    whole = v.round_to_words(v.mul(x, v.broadcast(1.4426950408889634)))
    turns = v.to_fp32(whole)
    rest = v.fma(turns, v.broadcast(-0.693145751953125), x)  # ln 2 in two parts, the first exact
    rest = v.fma(turns, v.broadcast(-1.428606765330187e-06), rest)
    power = v.broadcast(1.0 / 5040)
    for factor in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        power = v.fma(power, rest, v.broadcast(factor))
    return v.scale_by_power_of_two(power, whole)


@inline
def quantize_q8(x: int, columns: int, records: int) -> None:
    """Write x fp32 (columns,) as records; reference.quantize_activations is what it must equal."""
    for i in range(0, columns, 32):
        low, high = v.load(x + 4 * i), v.load(x + 4 * i + 64)
        most = v.reduce_max(v.max(v.abs(low), v.abs(high)))
        inverse = v.broadcast(127.0 / most if most > 0.0 else 0.0)
        low_bytes, high_bytes = v.round_to_words(v.mul(low, inverse)), v.round_to_words(v.mul(high, inverse))
        v.store_int8(records, low_bytes)
        v.store_int8(records + 16, high_bytes)
        v.write_fp32(records + 32, most / 127.0)
        low_sum, high_sum = v.reduce_add_words(low_bytes), v.reduce_add_words(high_bytes)
        v.write_int32(records + 36, -low_sum)
        v.write_int32(records + 40, -high_sum)
        v.write_int32(records + 44, -low_sum - high_sum)
        records += Q8_BLOCK


@inline
def _embed(dtype, at, chunk):
    ids, weight, out, width = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    start, to = v.read(ids + 8 * chunk) * width, out + 4 * width * chunk
    for i in range(width):
        v.write_fp32(to + 4 * i, e.one(dtype, weight, start + i))


@kernel
def embed_fp32(at: int, chunk: int) -> None:
    """ids int64 (B,), weight (V, D), out (B, D), D; a chunk is a row of the batch."""
    _embed(e.FP32, at, chunk)


@kernel
def embed_bf16(at: int, chunk: int) -> None:
    """The same of bf16."""
    _embed(e.BF16, at, chunk)


@kernel
def embed_fp16(at: int, chunk: int) -> None:
    """The same of fp16."""
    _embed(e.FP16, at, chunk)


@inline
def _wide_of(kind: int, at: int, i: int) -> v.Vector:
    """Sixteen elements of a dtype that is known only as the kernel runs."""
    if kind == e.FP32:
        return e.wide(e.FP32, at, i)
    return e.wide(e.BF16, at, i) if kind == e.BF16 else e.wide(e.FP16, at, i)


@inline
def _one_of(kind: int, at: int, i: int) -> float:
    """One of them."""
    if kind == e.FP32:
        return e.one(e.FP32, at, i)
    return e.one(e.BF16, at, i) if kind == e.BF16 else e.one(e.FP16, at, i)


@inline
def _norm(dtype, at, chunk):
    x, y, weight, out = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    width, epsilon, records = v.read(at + 32), v.read_fp32(at + 40), v.read(at + 48)
    tokens, kept, kind = v.read(at + 56), v.read(at + 64), v.read(at + 72)
    row = chunk // kept * tokens + tokens - kept + chunk % kept
    x, whole, squares, square = x + 4 * width * row, width - width % 16, v.zero_fp32(), 0.0
    for i in range(0, whole, 16):
        value = v.load(x + 4 * i)
        if y:
            value = v.add(value, e.wide(dtype, y, width * row + i))
            v.store(x + 4 * i, value)
        squares = v.fma(value, value, squares)
    for i in range(whole, width):
        if y:
            v.write_fp32(x + 4 * i, v.read_fp32(x + 4 * i) + e.one(dtype, y, width * row + i))
        square += v.read_fp32(x + 4 * i) ** 2
    factor = 1.0 / math.sqrt((square + v.reduce_add(squares)) / width + epsilon)
    for i in range(0, whole, 16):
        value = v.mul(_wide_of(kind, weight, i), v.mul(v.load(x + 4 * i), v.broadcast(factor)))
        e.put_wide(dtype, out, width * chunk + i, value)
    for i in range(whole, width):
        e.put(dtype, out, width * chunk + i, _one_of(kind, weight, i) * (v.read_fp32(x + 4 * i) * factor))
    if records:
        quantize_q8(out + 4 * width * chunk, width, records + width // 32 * Q8_BLOCK * chunk)


@kernel
def norm_fp32(at: int, chunk: int) -> None:
    """Add y to x, then RMSNorm.

    x fp32 (B, T, D), y (B, T, D) or 0, weight (D,), out (B, kept, D), D, epsilon, records, T, kept, the number of the
    weight's dtype. x becomes x + y.
    Only the last `kept` tokens of each row are read, and a chunk is one of them. Records of out, or 0, are for fp32
    alone; D is then a multiple of 32.
    """
    _norm(e.FP32, at, chunk)


@kernel
def norm_bf16(at: int, chunk: int) -> None:
    """The same with y and out in bf16."""
    _norm(e.BF16, at, chunk)


@kernel
def norm_fp16(at: int, chunk: int) -> None:
    """The same with y and out in fp16."""
    _norm(e.FP16, at, chunk)


@inline
def gated(gate: v.Vector, up: v.Vector) -> v.Vector:
    """silu(gate) * up."""
    return v.mul(v.div(gate, v.add(v.broadcast(1.0), exponential(v.sub(v.zero_fp32(), gate)))), up)


@inline
def _gate(dtype, at, chunk):
    first, second, out, size = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    start, end, records = chunk * size, min(v.read(at + 32), (chunk + 1) * size), v.read(at + 40)
    last = start + (end - start) // 16 * 16
    for i in range(start, last, 16):
        e.put_wide(dtype, out, i, gated(e.wide(dtype, first, i), e.wide(dtype, second, i)))
    for i in range(last, end):
        x = e.one(dtype, first, i)
        e.put(dtype, out, i, x / (1.0 + math.exp(-x)) * e.one(dtype, second, i))
    if records:
        quantize_q8(out + 4 * start, end - start, records + start // 32 * Q8_BLOCK)


@kernel
def gate_fp32(at: int, chunk: int) -> None:
    """silu(gate) * up: gate, up, out (B * F,), columns of a chunk (a multiple of 32), B * F, records of out or 0.

    Records are for fp32 alone; F is then a multiple of 32.
    """
    _gate(e.FP32, at, chunk)


@kernel
def gate_bf16(at: int, chunk: int) -> None:
    """The same in bf16."""
    _gate(e.BF16, at, chunk)


@kernel
def gate_fp16(at: int, chunk: int) -> None:
    """The same in fp16."""
    _gate(e.FP16, at, chunk)


@kernel
def angles(at: int, chunk: int) -> None:
    """positions int64 (B,), frequencies (H/2,), cosines and sines (B, H/2), H/2, the factor on both; a chunk a row."""
    half, factor = v.read(at + 32), v.read_fp32(at + 40)
    position = v.read(v.read(at) + 8 * chunk)
    for i in range(half):
        angle = float(np.float32(position) * v.read_fp32(v.read(at + 8) + 4 * i))  # rounded as the model rounds it
        v.write_fp32(v.read(at + 16) + 4 * (half * chunk + i), math.cos(angle) * factor)
        v.write_fp32(v.read(at + 24) + 4 * (half * chunk + i), math.sin(angle) * factor)


@kernel
def quantize_rows(at: int, chunk: int) -> None:
    """x (B * K,) as records: x, records, columns of a chunk (a multiple of 32), B * K."""
    size = v.read(at + 16)
    start, end = chunk * size, min(v.read(at + 24), (chunk + 1) * size)
    quantize_q8(v.read(at) + 4 * start, end - start, v.read(at + 8) + start // 32 * Q8_BLOCK)
