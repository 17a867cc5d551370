"""Vectors of eight lanes, half of those of `simd`: for processors whose registers hold no more.

The lanes of a sum do not meet before its end, so a kernel may go over the columns once for either half: its sums then
stay in registers.
"""

from typing import Any

from llvmlite import ir
from numba import types

from llamita.kernels.cpu import simd
from llamita.kernels.cpu import simd_code as code

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_FLOATS, _WORDS = ir.VectorType(_F32, 8), ir.VectorType(_I32, 8)
Floats8 = simd.Lanes("floats8", _FLOATS)
Words8 = simd.Lanes("words8", _WORDS)
i64, void = types.int64, types.void


def _constant(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * 8)


def _put_masks(b: simd.Builder, to: simd.Value) -> None:
    for start in range(0, MASKS, 32):
        code.write(b, b.add(to, code.I64(start)), _constant(-65536), 32)


def _load_high_bf16(b: simd.Builder, at: simd.Value, mask: simd.Value) -> simd.Value:
    return b.bitcast(b.and_(code.read(b, at, _WORDS), code.read(b, mask, _WORDS, 32)), _FLOATS)


def _meet(b: simd.Builder, x: simd.Value, y: simd.Value, lanes: list[int], step: int) -> simd.Value:
    return b.fadd(code.shuffled(b, x, y, lanes), code.shuffled(b, x, y, [lane + step for lane in lanes]))


def _read_pairs(b: simd.Builder, at: simd.Value, beside: simd.Value) -> simd.Value:
    pair = ir.VectorType(_F32, 2)
    return code.shuffled(b, code.read(b, at, pair, 4), code.read(b, beside, pair, 4), [0, 1, 2, 3])


def _write_pairs(b: simd.Builder, at: simd.Value, beside: simd.Value, value: simd.Value) -> None:
    code.write(b, at, code.shuffled(b, value, value, [0, 1]), 4)
    code.write(b, beside, code.shuffled(b, value, value, [2, 3]), 4)


load = simd.operation(Floats8(i64), lambda b, at: code.read(b, at, _FLOATS))  # 32 bytes of fp32
load_words = simd.operation(Words8(i64), lambda b, at: code.read(b, at, _WORDS))
store = simd.operation(void(i64, Floats8), lambda b, at, value: code.write(b, at, value))
zero = simd.operation(Floats8(), lambda b: ir.Constant(_FLOATS, [0.0] * 8))
fma = simd.operation(  # x * y + z, rounded once
    Floats8(Floats8, Floats8, Floats8), lambda b, x, y, z: simd.call_intrinsic(b, "llvm.fma.v8f32", _FLOATS, x, y, z)
)
add = simd.operation(Floats8(Floats8, Floats8), lambda b, x, y: b.fadd(x, y))
# Steps of the tree that adds the lanes of sums, for two vectors at once: sums of x and of y side by side, in fours
# after the first step, then in twos, then alone. The first step keeps x in the lower half, y in the upper.
meet_4 = simd.operation(Floats8(Floats8, Floats8), lambda b, x, y: _meet(b, x, y, [0, 1, 2, 3, 8, 9, 10, 11], 4))
meet_2 = simd.operation(Floats8(Floats8, Floats8), lambda b, x, y: _meet(b, x, y, [0, 1, 8, 9, 4, 5, 12, 13], 2))
meet_1 = simd.operation(Floats8(Floats8, Floats8), lambda b, x, y: _meet(b, x, y, [0, 2, 8, 10, 4, 6, 12, 14], 1))
# Of the lanes of both halves the first two and the last two, as pairs of one of either half.
first_pairs = simd.operation(simd.Quads(Floats8), lambda b, x: code.shuffled(b, x, x, [0, 4, 1, 5]))
last_pairs = simd.operation(simd.Quads(Floats8), lambda b, x: code.shuffled(b, x, x, [2, 6, 3, 7]))
load_pairs = simd.operation(simd.Quads(i64, i64), _read_pairs)  # 8 bytes each of two addresses
store_pairs = simd.operation(void(i64, i64, simd.Quads), _write_pairs)
low_bf16 = simd.operation(Floats8(Words8), lambda b, x: b.bitcast(b.shl(x, _constant(16)), _FLOATS))  # of pairs
high_bf16 = simd.operation(Floats8(Words8), lambda b, x: b.bitcast(b.and_(x, _constant(-65536)), _FLOATS))
# The same of eight pairs at an address, by a mask in memory: a loop that needs all other registers has none for it.
MASKS = 128  # bytes of four masks
put_masks = simd.operation(void(i64), _put_masks)
load_high_bf16 = simd.operation(Floats8(i64, i64), _load_high_bf16)
# An address that LLVM must not know, nor read before: else it keeps what is read twice, and there is no room for that.
again = simd.operation(
    i64(i64),
    lambda b, at: b.asm(ir.FunctionType(code.I64, [code.I64]), "", "=r,0,~{memory}", [at], side_effect=True),
)
# Loads after it are not done before it: where LLVM loads all that comes, there are too few registers.
fence = simd.operation(
    void(), lambda b: b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)
)
