"""Vectors of eight lanes, half of those of `simd`: for processors whose registers hold no more.

The lanes of a sum do not meet before its end, so a kernel may go over the columns once for either half: its sums then
stay in registers.
"""

from typing import Any

from llvmlite import ir
from numba import types

from llamita.kernels.cpu import simd

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_FLOATS, _WORDS = ir.VectorType(_F32, 8), ir.VectorType(_I32, 8)
Floats8 = simd.Lanes("floats8", _FLOATS)
Words8 = simd.Lanes("words8", _WORDS)
i64, void = types.int64, types.void


def _constant(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * 8)


def _put_masks(b: simd.Builder, to: simd.Value) -> None:
    for start in range(0, MASKS, 32):
        simd._write(b, b.add(to, simd._I64(start)), _constant(-65536), 32)


def _load_high_bf16(b: simd.Builder, at: simd.Value, mask: simd.Value) -> simd.Value:
    return b.bitcast(b.and_(simd._read(b, at, _WORDS), simd._read(b, mask, _WORDS, 32)), _FLOATS)


load = simd.operation(Floats8(i64), lambda b, at: simd._read(b, at, _FLOATS))  # 32 bytes of fp32
load_words = simd.operation(Words8(i64), lambda b, at: simd._read(b, at, _WORDS))
store = simd.operation(void(i64, Floats8), lambda b, at, value: simd._write(b, at, value))
zero = simd.operation(Floats8(), lambda b: ir.Constant(_FLOATS, [0.0] * 8))
fma = simd.operation(  # x * y + z, rounded once
    Floats8(Floats8, Floats8, Floats8), lambda b, x, y, z: simd.call_intrinsic(b, "llvm.fma.v8f32", _FLOATS, x, y, z)
)
low_bf16 = simd.operation(Floats8(Words8), lambda b, x: b.bitcast(b.shl(x, _constant(16)), _FLOATS))  # of pairs
high_bf16 = simd.operation(Floats8(Words8), lambda b, x: b.bitcast(b.and_(x, _constant(-65536)), _FLOATS))
# The same of eight pairs at an address, by a mask in memory: a loop that needs all other registers has none for it.
MASKS = 128  # bytes of four masks
put_masks = simd.operation(void(i64), _put_masks)
load_high_bf16 = simd.operation(Floats8(i64, i64), _load_high_bf16)
# An address that LLVM must not know, nor read before: else it keeps what is read twice, and there is no room for that.
again = simd.operation(
    i64(i64),
    lambda b, at: b.asm(ir.FunctionType(simd._I64, [simd._I64]), "", "=r,0,~{memory}", [at], side_effect=True),
)
