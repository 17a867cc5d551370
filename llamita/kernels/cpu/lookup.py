"""A look-up of bytes in a table of sixteen, the one operation on vectors that formats with a table of values need."""

from collections.abc import Iterable

from llvmlite import ir

from llamita.kernels.cpu import simd
from llamita.kernels.cpu.simd import Builder, Value, Words, i64

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_BYTES, _WORDS = ir.VectorType(_I8, 4 * simd.LANES), ir.VectorType(_I32, simd.LANES)

# What looks bytes up in a table of sixteen: a feature of the processor, bytes at a time, LLVM's name for it.
LOOKUPS = (
    ("avx512bw", 64, "llvm.x86.avx512.pshuf.b.512"),
    ("avx2", 32, "llvm.x86.avx2.pshuf.b"),
    ("ssse3", 16, "llvm.x86.ssse3.pshuf.b.128"),
)


def _lookup(b: Builder, codes: Value, low: Value, high: Value) -> Value:
    for feature, size, name in LOOKUPS:
        if simd._has(feature):
            return _lookup_by(b, codes, low, high, size, name)
    return _lookup_anywhere(b, codes, low, high)


def _lookup_by(b: Builder, codes: Value, low: Value, high: Value, size: int, name: str) -> Value:
    """By an instruction that takes codes and the table, repeated, in registers of `size` bytes."""
    register = ir.VectorType(_I8, size)
    table, codes = _table(b, low, high, size), b.bitcast(codes, _BYTES)
    pieces = []
    for start in range(0, 64, size):
        piece = b.shuffle_vector(codes, codes, _places(range(start, start + size)))
        pieces.append(simd.call_intrinsic(b, name, register, table, piece))
    while len(pieces) > 1:
        both = _places(range(2 * 64 // len(pieces)))
        pieces = [b.shuffle_vector(x, y, both) for x, y in zip(pieces[::2], pieces[1::2], strict=True)]
    return b.bitcast(pieces[0], _WORDS)


def _lookup_anywhere(b: Builder, codes: Value, low: Value, high: Value) -> Value:
    """The same in LLVM's own terms: sixteen comparisons."""
    table, codes = _table(b, low, high, 64), b.bitcast(codes, _BYTES)
    found = ir.Constant(_BYTES, [0] * 64)
    for code in range(16):
        is_here = b.icmp_unsigned("==", codes, ir.Constant(_BYTES, [code] * 64))
        found = b.select(is_here, b.shuffle_vector(table, table, _places([code] * 64)), found)
    return b.bitcast(found, _WORDS)


def _table(b: Builder, low: Value, high: Value, size: int) -> Value:
    """Two numbers as their sixteen bytes, repeated over so many."""
    pair = ir.Constant(ir.VectorType(_I64, 2), ir.Undefined)
    pair = b.insert_element(b.insert_element(pair, low, _I32(0)), high, _I32(1))
    table = b.bitcast(pair, ir.VectorType(_I8, 16))
    return b.shuffle_vector(table, table, _places(i % 16 for i in range(size)))


def _places(numbers: Iterable[int]) -> Value:
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)


# Of each byte of the words, below 16, that byte of the sixteen which two numbers hold.
lookup = simd.operation(Words(Words, i64, i64), _lookup)
