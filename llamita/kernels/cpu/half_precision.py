"""Conversions between fp16 or bf16 and fp32, of one number or sixteen, for the loads and stores of `simd`."""

from llvmlite import ir

from llamita.kernels.cpu.compile_target import instructions
from llamita.kernels.cpu.pieces import Builder, Value, call_intrinsic, places

_F16, _LANES = ir.HalfType(), 16


class _BF16(ir.Type):
    """LLVM's type of bf16, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


def _all(kind: ir.Type, number: float) -> Value:
    """A number, or a vector of it in every lane."""
    return ir.Constant(kind, [number] * _LANES if isinstance(kind, ir.VectorType) else number)


def widened_bf16(b: Builder, halves: Value, whole: ir.Type, wide: ir.Type) -> Value:
    """Exactly."""
    return b.bitcast(b.shl(b.zext(halves, whole), _all(whole, 16)), wide)


def narrow_bf16(b: Builder, value: Value, whole: ir.Type, narrow: ir.Type) -> Value:
    """To the nearest, halves to even, as torch rounds; a NaN may come out as infinity."""
    pattern = b.bitcast(value, whole)
    odd = b.and_(b.lshr(pattern, _all(whole, 16)), _all(whole, 1))
    return b.trunc(b.lshr(b.add(pattern, b.add(odd, _all(whole, 0x7FFF))), _all(whole, 16)), narrow)


def joined_bf16(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors as 32 bf16, those of the first below, by an instruction where there is one.

    The instruction takes what is smaller than fp32's normal numbers for 0, as dot products of bf16 do.
    """
    if instructions().dot_bf16 == "vdpbf16ps.512":
        pairs = ir.VectorType(_BF16(), 2 * _LANES)
        return call_intrinsic(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", pairs, high, low)
    whole, narrow = ir.VectorType(ir.IntType(32), _LANES), ir.VectorType(ir.IntType(16), _LANES)
    both = (narrow_bf16(b, x, whole, narrow) for x in (low, high))
    return b.shuffle_vector(*both, places(range(2 * _LANES)))


def paired_bf16(b: Builder, low: Value, high: Value) -> Value:
    """The same, but each of the second vector right after that of the first."""
    halves = b.bitcast(joined_bf16(b, low, high), ir.VectorType(ir.IntType(16), 2 * _LANES))
    return b.shuffle_vector(halves, halves, places(lane + start for lane in range(_LANES) for start in (0, _LANES)))


def _half(whole: ir.Type) -> ir.Type | None:
    """LLVM's halves for these words, or None where it would call a library that may not be there, and abort."""
    if instructions().fp16 == "integers":
        return None
    return ir.VectorType(_F16, _LANES) if isinstance(whole, ir.VectorType) else _F16


def widened_fp16(b: Builder, halves: Value, whole: ir.Type, wide: ir.Type) -> Value:
    """Exactly."""
    if (half := _half(whole)) is not None:
        return b.fpext(b.bitcast(halves, half), wide)
    pattern = b.zext(halves, whole)
    size = b.and_(pattern, _all(whole, 0x7FFF))
    number = b.add(b.shl(size, _all(whole, 13)), _all(whole, 112 << 23))  # moves the exponent's zero
    # The smallest are counts of 2**-24, and no fp32 on the way is one that threads take for 0 (`float_mode`).
    tiny = b.bitcast(b.fmul(b.uitofp(size, wide), _all(wide, 2.0**-24)), whole)
    number = b.select(b.icmp_unsigned("<", size, _all(whole, 0x400)), tiny, number)
    number = b.select(b.icmp_unsigned(">=", size, _all(whole, 0x7C00)), b.or_(number, _all(whole, 0x7F800000)), number)
    number = b.select(b.icmp_unsigned(">", size, _all(whole, 0x7C00)), b.or_(number, _all(whole, 1 << 22)), number)
    return b.bitcast(b.or_(number, b.shl(b.and_(pattern, _all(whole, 0x8000)), _all(whole, 16))), wide)


def narrow_fp16(b: Builder, value: Value, whole: ir.Type, narrow: ir.Type) -> Value:
    """To the nearest, halves to even; a NaN keeps the bits that there is room for, as instructions have it."""
    if (half := _half(whole)) is not None:
        return b.bitcast(b.fptrunc(value, half), narrow)
    pattern = b.bitcast(value, whole)
    size = b.and_(pattern, _all(whole, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, _all(whole, 13)), _all(whole, 1))
    number = b.lshr(b.add(size, b.add(odd, _all(whole, 0xFFF - (112 << 23)))), _all(whole, 13))
    # Added to a half, the smallest numbers are rounded to multiples of the smallest fp16.
    tiny = b.bitcast(b.fadd(b.bitcast(size, value.type), _all(value.type, 0.5)), whole)
    tiny = b.sub(tiny, _all(whole, 0x3F000000))
    number = b.select(b.icmp_unsigned("<", size, _all(whole, 0x38800000)), tiny, number)
    quiet = b.or_(b.and_(b.lshr(size, _all(whole, 13)), _all(whole, 0x3FF)), _all(whole, 0x7E00))  # a NaN
    endless = b.select(b.icmp_unsigned(">", size, _all(whole, 0x7F800000)), quiet, _all(whole, 0x7C00))
    number = b.select(b.icmp_unsigned(">=", size, _all(whole, 0x47800000)), endless, number)
    return b.trunc(b.or_(number, b.lshr(b.and_(pattern, _all(whole, 0x80000000)), _all(whole, 16))), narrow)
