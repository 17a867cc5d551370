"""Dot products of bytes, four in each of sixteen 32-bit lanes: a version for each instruction, and one without.

All are exact. `pmaddubsw` adds pairs of products in 16 bits and saturates: sums of 7-bit codes fit, and of smaller
codes the sums of several pairs do. Signed bytes fit after their sign is moved to x, except for x of -128.
"""

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from llamita.kernels.cpu.pieces import I16, I32, Builder, Value, by_pieces, call_intrinsic, filled

Emit = Callable[..., Value]

# Of each width in bytes LLVM's names: unsigned times signed bytes, pairs added; 16-bit numbers, pairs added.
MULTIPLY = {
    64: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    32: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
}
SIGN = {32: "llvm.x86.avx2.psign.b", 16: "llvm.x86.ssse3.psign.b.128"}
_SHORTS = ir.VectorType(I16, 32)


def dot_u8s8_in_integers(b: Builder, total: Value, codes: Value, x: Value) -> Value:
    """In LLVM's own terms, for machines without an instruction for it."""
    words = total.type
    for part in range(4):
        code = b.and_(b.lshr(codes, filled(words, 8 * part)), filled(words, 255))
        signed = b.ashr(b.shl(x, filled(words, 24 - 8 * part)), filled(words, 24))
        total = b.add(total, b.mul(code, signed))
    return total


def dot_s8s8_in_integers(b: Builder, total: Value, weights: Value, x: Value) -> Value:
    """The same of signed bytes."""
    words = total.type
    for part in range(4):
        weight, signed = (
            b.ashr(b.shl(value, filled(words, 24 - 8 * part)), filled(words, 24)) for value in (weights, x)
        )
        total = b.add(total, b.mul(weight, signed))
    return total


# By pairs


def pair_products(size: int, b: Builder, codes: Value, x: Value) -> Value:
    """Codes of at most seven bits times x, pairs added: 32 numbers of 16 bits."""
    return by_pieces(b, size, partial(_pairs, size), codes, x)


def add_pairs(b: Builder, sums: Value, more: Value) -> Value:
    """Sums of pair products, added."""
    return b.bitcast(b.add(b.bitcast(sums, _SHORTS), b.bitcast(more, _SHORTS)), sums.type)


def add_up_pairs(size: int, b: Builder, total: Value, sums: Value, *, factor: int = 1) -> Value:
    """total + the two numbers of 16 bits in a lane, times a factor."""
    return b.add(total, by_pieces(b, size, partial(_add_up, size, factor=factor), sums))


def dot_u8s8_by_pairs(size: int, b: Builder, total: Value, codes: Value, x: Value) -> Value:
    """The low seven bits of a code by themselves, and half of its eighth, which counts twice."""
    low = b.and_(codes, filled(codes.type, 0x7F7F7F7F))
    half = b.and_(b.lshr(codes, filled(codes.type, 1)), filled(codes.type, 0x40404040))
    total = add_up_pairs(size, b, total, pair_products(size, b, low, x))
    return add_up_pairs(size, b, total, pair_products(size, b, half, x), factor=2)


def dot_s8s8_by_pairs(size: int, b: Builder, total: Value, weights: Value, x: Value) -> Value:
    """The sign of a weight moved to x, which must not be -128."""
    return add_up_pairs(size, b, total, by_pieces(b, size, partial(_signed_pairs, size), weights, x))


def _pairs(size: int, b: Builder, codes: Value, x: Value) -> Value:
    return call_intrinsic(b, MULTIPLY[size][0], ir.VectorType(I16, size // 2), codes, x)


def _signed_pairs(size: int, b: Builder, weights: Value, x: Value) -> Value:
    kind, zero = weights.type, filled(weights.type, 0)
    if size in SIGN:
        x = call_intrinsic(b, SIGN[size], kind, x, weights)
    else:
        x = b.select(b.icmp_signed("<", weights, zero), b.sub(zero, x), x)
    positive = call_intrinsic(b, f"llvm.abs.v{size}i8", kind, weights, ir.IntType(1)(0))  # 128 of -128, without sign
    return _pairs(size, b, positive, x)


def _add_up(size: int, b: Builder, sums: Value, *, factor: int) -> Value:
    shorts = ir.VectorType(I16, size // 2)
    return call_intrinsic(
        b, MULTIPLY[size][1], ir.VectorType(I32, size // 4), b.bitcast(sums, shorts), filled(shorts, factor)
    )


# By one instruction


def dot_by_one(name: str, size: int, b: Builder, total: Value, y: Value, x: Value) -> Value:
    """By an instruction that takes all three."""
    return by_pieces(b, size, partial(_one, name, size), total, y, x)


def _one(name: str, size: int, b: Builder, total: Value, y: Value, x: Value) -> Value:
    words = ir.VectorType(I32, size // 4)
    total = b.bitcast(total, words)
    if ".x86." in name:  # LLVM has these take words
        x, y = b.bitcast(x, words), b.bitcast(y, words)
    return call_intrinsic(b, name, words, total, y, x)


def dot_u8s8_by_signed(name: str, size: int, b: Builder, total: Value, codes: Value, x: Value) -> Value:
    """By an instruction for signed bytes: 128 is taken off the codes, and put back as -128 times x, subtracted."""
    lowest = filled(codes.type, 0x80808080 - 2**32)
    total = dot_by_one(name, size, b, total, b.xor(codes, lowest), x)
    return b.sub(total, dot_by_one(name, size, b, filled(total.type, 0), lowest, x))


_VNNI, _SDOT = "llvm.x86.avx512.vpdpbusd.{}", "llvm.aarch64.neon.sdot.v4i32.v16i8"
# By the way of an instruction set: unsigned codes times x; signed bytes times x, which others do in integers.
DOT_U8S8: dict[str, Emit] = {
    "vpdpbusd.512": partial(dot_by_one, _VNNI.format(512), 64),
    "vpdpbusd.256": partial(dot_by_one, _VNNI.format(256), 32),
    "vpmaddubsw.512": partial(dot_u8s8_by_pairs, 64),
    "vpmaddubsw.256": partial(dot_u8s8_by_pairs, 32),
    "pmaddubsw.128": partial(dot_u8s8_by_pairs, 16),
    "usdot.128": partial(dot_by_one, "llvm.aarch64.neon.usdot.v4i32.v16i8", 16),
    "sdot.128": partial(dot_u8s8_by_signed, _SDOT, 16),
    "integers": dot_u8s8_in_integers,
}
DOT_S8S8: dict[str, Emit] = {
    "vpmaddubsw.512": partial(dot_s8s8_by_pairs, 64),
    "vpmaddubsw.256": partial(dot_s8s8_by_pairs, 32),
    "pmaddubsw.128": partial(dot_s8s8_by_pairs, 16),
    "usdot.128": partial(dot_by_one, _SDOT, 16),
    "sdot.128": partial(dot_by_one, _SDOT, 16),
}
PAIRS = {"vpmaddubsw.512": 64, "vpmaddubsw.256": 32, "pmaddubsw.128": 16}  # the width in bytes of ways by pairs
