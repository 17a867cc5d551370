"""Between the products of a training step in bf16: norm, gate, rotary positions and loss, forward and backward.

Each must equal what autograd makes of the plain operation in fp32, its results rounded once. Numbers are fp32 in
registers. Their arguments are structs of `training_arguments`.
"""

import math

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import offsets
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.runtime.program import inline, kernel
from llamita.kernels.cpu.training_arguments import GateGradients, NormGradients, Rotate, SoftmaxGradient, TrainedNorm

NORM, NORM_BACK, ROTATE = offsets(TrainedNorm), offsets(NormGradients), offsets(Rotate)
GATE, SOFTMAX = offsets(GateGradients), offsets(SoftmaxGradient)


@inline
def _norm(dtype: int, at: int, chunk: int) -> None:
    width, lines = v.read(at + NORM.columns), v.read(at + NORM.lines)
    scale, size = v.read(at + NORM.scale), e.size(dtype)
    for row in range(chunk * lines, min(v.read(at + NORM.rows), (chunk + 1) * lines)):
        x, out = v.read(at + NORM.x) + size * row * width, v.read(at + NORM.out) + 2 * row * width
        squares, others = v.zero_fp32(), v.zero_fp32()
        for i in range(0, width, 32):
            one, two = e.wide(dtype, x, i), e.wide(dtype, x, i + 16)
            squares, others = v.fma(one, one, squares), v.fma(two, two, others)
        mean = v.reduce_add(v.add(squares, others)) / width
        factor = 1.0 / math.sqrt(mean + v.read_fp32(at + NORM.epsilon))
        v.write_fp32(v.read(at + NORM.rstd) + 4 * row, factor)
        factors = v.broadcast(factor)
        for i in range(0, width, 16):
            v.store_bf16(out + 2 * i, v.mul(v.load(scale + 4 * i), v.mul(e.wide(dtype, x, i), factors)))


@kernel
def norm_fp32(at: int, chunk: int) -> None:
    """Of x in fp32."""
    _norm(e.FP32, at, chunk)


@kernel
def norm_bf16(at: int, chunk: int) -> None:
    """Of x in bf16."""
    _norm(e.BF16, at, chunk)


@inline
def _norm_gradients(dtype: int, at: int, chunk: int) -> None:
    width, lines, size = v.read(at + NORM_BACK.columns), v.read(at + NORM_BACK.lines), e.size(dtype)
    scale, d_scale = v.read(at + NORM_BACK.scale), v.read(at + NORM_BACK.d_scale) + 4 * width * chunk
    v.zero_memory(d_scale, width // 16)
    for row in range(chunk * lines, min(v.read(at + NORM_BACK.rows), (chunk + 1) * lines)):
        x, d = v.read(at + NORM_BACK.x) + size * row * width, v.read(at + NORM_BACK.d_out) + 4 * row * width
        to, rstd = v.read(at + NORM_BACK.d_x) + size * row * width, v.read_fp32(v.read(at + NORM_BACK.rstd) + 4 * row)
        factor, sums = v.broadcast(rstd), v.zero_fp32()
        for i in range(0, width, 16):
            one = v.mul(v.load(d + 4 * i), v.mul(e.wide(dtype, x, i), factor))
            v.store(d_scale + 4 * i, v.add(v.load(d_scale + 4 * i), one))
            sums = v.fma(one, v.load(scale + 4 * i), sums)
        mean = v.broadcast(-v.reduce_add(sums) / width)
        for i in range(0, width, 16):
            own = v.mul(v.load(d + 4 * i), v.load(scale + 4 * i))
            e.put_wide(dtype, to, i, v.mul(v.fma(v.mul(e.wide(dtype, x, i), factor), mean, own), factor))


@kernel
def norm_gradients_fp32(at: int, chunk: int) -> None:
    """Of x in fp32."""
    _norm_gradients(e.FP32, at, chunk)


@kernel
def norm_gradients_bf16(at: int, chunk: int) -> None:
    """Of x in bf16."""
    _norm_gradients(e.BF16, at, chunk)


@inline
def _sigmoid(x: v.Vector) -> v.Vector:
    one = v.broadcast(1.0)
    return v.div(one, v.add(one, exponential(v.sub(v.zero_fp32(), x))))


@kernel
def gate(at: int, chunk: int) -> None:
    """silu(gate) * up."""
    size = v.read(at + GATE.chunk)
    first, second, out = v.read(at + GATE.gate), v.read(at + GATE.up), v.read(at + GATE.out)
    for i in range(size * chunk, min(v.read(at + GATE.size), size * (chunk + 1)), 16):
        x = v.load_bf16(first + 2 * i)
        v.store_bf16(out + 2 * i, v.mul(v.mul(x, _sigmoid(x)), v.load_bf16(second + 2 * i)))


@kernel
def gate_gradients(at: int, chunk: int) -> None:
    """silu(gate) * up again, and the gradients of both."""
    size = v.read(at + GATE.chunk)
    first, second, out = v.read(at + GATE.gate), v.read(at + GATE.up), v.read(at + GATE.out)
    d_out, d_gate, d_up = v.read(at + GATE.d_out), v.read(at + GATE.d_gate), v.read(at + GATE.d_up)
    for i in range(size * chunk, min(v.read(at + GATE.size), size * (chunk + 1)), 16):
        x, up, d = v.load_bf16(first + 2 * i), v.load_bf16(second + 2 * i), v.load_bf16(d_out + 2 * i)
        share = _sigmoid(x)
        active = v.mul(x, share)
        v.store_bf16(out + 2 * i, v.mul(active, up))
        v.store_bf16(d_up + 2 * i, v.mul(active, d))
        slope = v.fma(active, v.sub(v.broadcast(1.0), share), share)  # of silu
        v.store_bf16(d_gate + 2 * i, v.mul(v.mul(d, up), slope))


@kernel
def rotate(at: int, chunk: int) -> None:
    """Rotate the heads of a token; `sign` -1 rotates them back."""
    heads, half = v.read(at + ROTATE.heads), v.read(at + ROTATE.half)
    cosines, sines = v.read(at + ROTATE.cosines) + 8 * half * chunk, v.read(at + ROTATE.sines) + 8 * half * chunk
    sign = v.broadcast(v.read_fp32(at + ROTATE.sign))
    for head in range(heads):
        offset = 4 * half * (chunk * heads + head)
        x, out = v.read(at + ROTATE.x) + offset, v.read(at + ROTATE.out) + offset
        for i in range(0, half, 16):
            j = i + half
            low, high = v.load_bf16(x + 2 * i), v.load_bf16(x + 2 * j)
            rest = v.mul(v.mul(high, sign), v.load(sines + 4 * i))
            v.store_bf16(out + 2 * i, v.sub(v.mul(low, v.load(cosines + 4 * i)), rest))
            rest = v.mul(v.mul(low, sign), v.load(sines + 4 * j))
            v.store_bf16(out + 2 * j, v.add(v.mul(high, v.load(cosines + 4 * j)), rest))


@kernel
def softmax_gradient(at: int, chunk: int) -> None:
    """Logits of a token to exponentials, less their sum at the target: the loss's gradient times that sum."""
    width, target = v.read(at + SOFTMAX.columns), v.read(v.read(at + SOFTMAX.targets) + 8 * chunk)
    x = v.read(at + SOFTMAX.logits) + 2 * width * chunk
    most, other = v.load_bf16(x), v.load_bf16(x)
    for i in range(0, width, 32):
        most = v.max(most, v.load_bf16(x + 2 * i))
        if i + 16 < width:
            other = v.max(other, v.load_bf16(x + 2 * i + 32))
    largest = v.reduce_max(v.max(most, other))
    target = max(target, 0)
    own, most = v.read_bf16(x + 2 * target) - largest, v.broadcast(largest)
    sums = v.zero_fp32()
    for i in range(0, width, 16):
        power = exponential(v.sub(v.load_bf16(x + 2 * i), most))
        sums = v.add(sums, power)
        v.store_bf16(x + 2 * i, power)
    total = v.reduce_add(sums)
    v.write_bf16(x + 2 * target, v.extract_first(exponential(v.broadcast(own))) - total)
    v.write_fp32(v.read(at + SOFTMAX.totals) + 4 * chunk, total)
    v.write_fp32(v.read(at + SOFTMAX.own) + 4 * chunk, own)
