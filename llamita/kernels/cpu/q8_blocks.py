"""x fp32 as q8_blocks, for products with quantized matrices.

Must equal reference.quantize_activations bit for bit. A q8_block is 48 bytes: 32 columns of x as int8, their scale in
fp32, and minus the sums of the first sixteen, of the last sixteen and of all in int32 (kernels for unsigned codes
subtract a multiple of these; ggml's block_q8_1).

Four blocks are made at once: what crosses lanes, to find the largest and to add up, is done for all of them together.
"""

from functools import partial

from llvmlite import ir

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu import simd_code as code
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.pieces import Builder, Value, call_intrinsic, filled
from llamita.kernels.cpu.runtime.program import inline

_FOUR = ir.VectorType(code.F32, 4)


def _larger(b: Builder, x: Value, y: Value) -> Value:
    """The larger ones of numbers without sign, as integers of the same order; a NaN is larger than all others."""
    return call_intrinsic(b, f"llvm.smax.v{x.type.count}i32", x.type, x, y)


def _magnitudes(b: Builder, x: Value, y: Value) -> Value:
    """The larger ones of two vectors without their signs."""
    return _larger(b, *(b.and_(b.bitcast(one, code.WORDS), filled(code.WORDS, 0x7FFFFFFF)) for one in (x, y)))


def _most_of_one(b: Builder, x: Value) -> Value:
    return b.bitcast(call_intrinsic(b, "llvm.vector.reduce.smax.v16i32", code.I32, x), code.F32)


def _most_of_four(b: Builder, *vectors: Value) -> Value:
    return b.bitcast(code.reduce_4(b, partial(_larger, b), *vectors), _FOUR)


def _quotients(b: Builder, most: Value) -> tuple[Value, Value]:
    """Of the largest of four blocks: what x is multiplied with, and the scales."""
    limit, zero = filled(_FOUR, 127), filled(_FOUR, 0)
    inverse = b.select(b.fcmp_ordered(">", most, zero), b.fdiv(limit, most), zero)
    return inverse, b.fdiv(most, limit)


def _joined(b: Builder, x: Value, y: Value, z: Value, w: Value) -> Value:
    """The low bytes of four vectors' lanes, one after the other."""
    x, y, z, w = (b.trunc(one, ir.VectorType(code.I8, code.LANES)) for one in (x, y, z, w))
    halves = (code.shuffled(b, one, two, [*range(32)]) for one, two in ((x, y), (z, w)))
    return b.bitcast(code.shuffled(b, next(halves), next(halves), [*range(64)]), code.WORDS)


def _ends(b: Builder, early: Value, late: Value, scales: Value) -> Value:
    """What follows the bytes of four blocks, each of four words: the scale, and minus the sums.

    early, late: sums of four bytes each, eight of the first block and eight of the second; and of the last two blocks.
    """
    for _ in range(2):
        evens, odds = ([4 * i + j for i in range(4) for j in (k, k + 2, k + 16, k + 18)] for k in (0, 1))
        early = late = b.add(code.shuffled(b, early, late, evens), code.shuffled(b, early, late, odds))
    # Quarters: the first halves of blocks one and three in turn, then their last halves; then those of two and four.
    halves = b.sub(filled(code.WORDS, 0), early)
    both = b.add(halves, code.shuffled(b, halves, halves, [lane ^ 4 for lane in range(code.LANES)]))
    firsts = [0, 8, 1, 9]  # lanes of the first halves of the four blocks
    lanes = [lane for one in firsts for lane in (one, one, one + 4, one + 16)]
    ends = code.shuffled(b, halves, both, lanes)
    wide = b.bitcast(code.shuffled(b, scales, scales, [lane // 4 for lane in range(code.LANES)]), code.WORDS)
    return code.shuffled(b, ends, wide, [lane if lane % 4 else 16 + lane for lane in range(code.LANES)])


def _put_parts(b: Builder, at: Value, step: Value, words: Value, count: int) -> None:
    """Store a vector in `count` parts, `step` bytes apart."""
    size = code.LANES // count
    for i in range(count):
        part = code.shuffled(b, words, words, [*range(size * i, size * (i + 1))])
        code.write(b, b.add(at, b.mul(step, code.I64(i))), part)


_largest = v.operation(v.Words(v.Floats, v.Floats), _magnitudes)
_reduce = v.operation(v.f32(v.Words), _most_of_one)
_reduce_four = v.operation(v.Quads(v.Words, v.Words, v.Words, v.Words), _most_of_four)
_inverses = v.operation(v.Quads(v.Quads), lambda b, most: _quotients(b, most)[0])
_scales = v.operation(v.Quads(v.Quads), lambda b, most: _quotients(b, most)[1])
_join = v.operation(v.Words(v.Words, v.Words, v.Words, v.Words), _joined)
_make_ends = v.operation(v.Words(v.Words, v.Words, v.Quads), _ends)
_put_halves = v.operation(v.void(v.i64, v.i64, v.Words), lambda b, at, step, words: _put_parts(b, at, step, words, 2))
_put_quarters = v.operation(v.void(v.i64, v.i64, v.Words), lambda b, at, step, words: _put_parts(b, at, step, words, 4))


@inline
def _largest_of(x: int) -> v.Vector:
    """The largest of each two of a block's columns, in order."""
    return _largest(v.load(x), v.load(x + 64))


@inline
def _rounded(x: int, inverse: float) -> v.Vector:
    return v.round_to_words(v.mul(v.load(x), v.broadcast(inverse)))


@inline
def _quantize_four(x: int, step: int, q8_blocks: int, apart: int) -> None:
    most = _reduce_four(_largest_of(x), _largest_of(x + step), _largest_of(x + 2 * step), _largest_of(x + 3 * step))
    inverses, one = _inverses(most), v.xor_words(v.zero_words(), 0x01010101)
    a, b = v.extract_quad(inverses, 0), v.extract_quad(inverses, 1)
    early = _join(_rounded(x, a), _rounded(x + 64, a), _rounded(x + step, b), _rounded(x + step + 64, b))
    x += 2 * step
    a, b = v.extract_quad(inverses, 2), v.extract_quad(inverses, 3)
    late = _join(_rounded(x, a), _rounded(x + 64, a), _rounded(x + step, b), _rounded(x + step + 64, b))
    _put_halves(q8_blocks, apart, early)
    _put_halves(q8_blocks + 2 * apart, apart, late)
    sums = v.dot_u8s8(v.zero_words(), one, early), v.dot_u8s8(v.zero_words(), one, late)
    _put_quarters(q8_blocks + 32, apart, _make_ends(sums[0], sums[1], _scales(most)))


@inline
def _quantize_one(x: int, q8_blocks: int) -> None:
    most = _reduce(_largest_of(x))
    inverse = 127.0 / most if most > 0.0 else 0.0
    low, high = _rounded(x, inverse), _rounded(x + 64, inverse)
    v.store_int8(q8_blocks, low)
    v.store_int8(q8_blocks + 16, high)
    v.write_fp32(q8_blocks + 32, most / 127.0)
    low_sum, high_sum = v.reduce_add_words(low), v.reduce_add_words(high)
    v.write_int32(q8_blocks + 36, -low_sum)
    v.write_int32(q8_blocks + 40, -high_sum)
    v.write_int32(q8_blocks + 44, -low_sum - high_sum)


@inline
def quantize_blocks(x: int, step: int, q8_blocks: int, apart: int, count: int) -> None:
    """Write `count` times 32 columns of x fp32, `step` bytes apart, as q8_blocks that are `apart` bytes apart."""
    whole = count // 4 * 4
    for i in range(0, whole, 4):
        _quantize_four(x + i * step, step, q8_blocks + i * apart, apart)
    for i in range(whole, count):
        _quantize_one(x + i * step, q8_blocks + i * apart)


@inline
def quantize_q8(x: int, columns: int, q8_blocks: int) -> None:
    """Write x fp32 (columns,) as q8_blocks."""
    quantize_blocks(x, 128, q8_blocks, Q8_BLOCK, columns // 32)
