"""Look up bytes in a table of sixteen: the one vector operation that formats with a table of values add."""

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from llamita.kernels.cpu import simd
from llamita.kernels.cpu.pieces import BYTES, I8, I32, I64, by_pieces, call_intrinsic, filled, places
from llamita.kernels.cpu.simd import Builder, Value, Words, i64

_BYTES = ir.VectorType(I8, BYTES)


def _lookup(b: Builder, codes: Value, low: Value, high: Value) -> Value:
    return LOOKUPS[simd.instructions().lookup](b, codes, low, high)


def _lookup_by(name: str, size: int, b: Builder, codes: Value, low: Value, high: Value) -> Value:
    """By an instruction that takes codes and the table, repeated, in registers of `size` bytes."""
    table = _table(b, low, high, size)
    return by_pieces(b, size, lambda b, piece: call_intrinsic(b, name, table.type, table, piece), codes)


def _lookup_anywhere(b: Builder, codes: Value, low: Value, high: Value) -> Value:
    """The same in LLVM's own terms: sixteen comparisons."""
    table, bytes_ = _table(b, low, high, BYTES), b.bitcast(codes, _BYTES)
    found = filled(_BYTES, 0)
    for code in range(16):
        is_here = b.icmp_unsigned("==", bytes_, filled(_BYTES, code))
        found = b.select(is_here, b.shuffle_vector(table, table, places([code] * BYTES)), found)
    return b.bitcast(found, codes.type)


def _table(b: Builder, low: Value, high: Value, size: int) -> Value:
    """Two numbers as their sixteen bytes, repeated over `size` bytes."""
    pair = ir.Constant(ir.VectorType(I64, 2), ir.Undefined)
    pair = b.insert_element(b.insert_element(pair, low, I32(0)), high, I32(1))
    table = b.bitcast(pair, ir.VectorType(I8, 16))
    return b.shuffle_vector(table, table, places(i % 16 for i in range(size)))


# By the way of an instruction set.
LOOKUPS: dict[str, Callable[..., Value]] = {
    "vpshufb.512": partial(_lookup_by, "llvm.x86.avx512.pshuf.b.512", 64),
    "vpshufb.256": partial(_lookup_by, "llvm.x86.avx2.pshuf.b", 32),
    "pshufb.128": partial(_lookup_by, "llvm.x86.ssse3.pshuf.b.128", 16),
    "comparisons": _lookup_anywhere,
}
# Of each byte of the words, below 16, that byte of the sixteen which two numbers hold.
lookup = simd.operation(Words(Words, i64, i64), _lookup)
