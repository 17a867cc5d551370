"""Products of signed bytes by the registers for tiles of a matrix (Intel AMX): sixteen rows of 64 bytes each.

The sums are int32 and exact, so they equal those of `dot_bytes` in any order. Between `configure` and `release` a
thread has the registers; code of other libraries, which configures them for itself, runs before or after.
"""

import struct

from llvmlite import ir

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.pieces import BYTES, I8, I64, Builder, Value, call_intrinsic, filled

ROWS = 16  # of x in a tile
_X, _LOW, _HIGH, _LOW_SUMS, _HIGH_SUMS = range(5)  # the registers
_CODES = ir.VectorType(I8, BYTES)


def _configured(columns: int) -> bytes:
    """What `ldtilecfg` reads: palette 1, then the bytes of a row and the rows of each register."""
    widths = [columns, BYTES, BYTES, BYTES, BYTES]
    rows = [ROWS, columns // 4, columns // 4, ROWS, ROWS]
    return struct.pack("<B15x8H16x8B8x", 1, *widths, 0, 0, 0, *rows, 0, 0, 0)


def _pointer(b: Builder, at: Value) -> Value:
    return v.pointer(b, at, I8)


def _configure(columns: int, b: Builder, at: Value) -> None:
    setting = ir.Constant(_CODES, list(_configured(columns)))
    b.store(setting, v.pointer(b, at, _CODES), align=1)
    call_intrinsic(b, "llvm.x86.ldtilecfg", ir.VoidType(), _pointer(b, at))


def _multiply(b: Builder, x: Value, line: Value, codes: Value, to: Value) -> None:
    nothing, step = ir.VoidType(), I64(2 * BYTES)
    call_intrinsic(b, "llvm.x86.tileloadd64", nothing, I8(_X), _pointer(b, x), line)
    for tile, sums, place in ((_LOW, _LOW_SUMS, 0), (_HIGH, _HIGH_SUMS, BYTES)):
        call_intrinsic(b, "llvm.x86.tileloadd64", nothing, I8(tile), _pointer(b, b.add(codes, I64(place))), step)
        call_intrinsic(b, "llvm.x86.tilezero", nothing, I8(sums))
        call_intrinsic(b, "llvm.x86.tdpbssd", nothing, I8(sums), I8(_X), I8(tile))
        call_intrinsic(b, "llvm.x86.tilestored64", nothing, I8(sums), _pointer(b, b.add(to, I64(place))), step)


def _signed(b: Builder, word: Value, zero: Value) -> Value:
    around = b.shl(I64(1), zero)
    numbers = b.insert_element(filled(_CODES, 0), b.trunc(around, I8), ir.Constant(ir.IntType(32), 0))
    spread = b.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(ir.IntType(32), BYTES), [0] * BYTES))
    return b.bitcast(b.sub(b.bitcast(word, _CODES), spread), word.type)


# Take the registers, for products of 32 or 16 columns; the 64 bytes at an address are overwritten.
configure_32 = v.operation(v.void(v.i64), lambda b, at: _configure(32, b, at))
configure_16 = v.operation(v.void(v.i64), lambda b, at: _configure(16, b, at))
release = v.operation(v.void(), lambda b: call_intrinsic(b, "llvm.x86.tilerelease", ir.VoidType()) and None)
# Sixteen rows of x, `line` bytes apart, times the words of two tiles as `gemm_panels` unpacks them: of each row sixteen
# int32 sums of the first tile and of the second, 128 bytes on those of the next row.
multiply = v.operation(v.void(v.i64, v.i64, v.i64, v.i64), _multiply)
signed = v.operation(v.Words(v.Words, v.i64), _signed)  # codes around two to the power `zero`, as signed bytes
