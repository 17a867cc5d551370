"""The floating-point mode of a thread while it runs kernels: denormal numbers are 0, on every machine.

The instruction of `simd.dot_bf16` treats them as 0 in every mode, so all other operations must too.
"""

from typing import Any

from llvmlite import ir
from numba import types

from llamita.kernels.cpu import simd

FLUSH = {"x86_64": 0x8040, "aarch64": 1 << 24}  # FTZ and DAZ of MXCSR; FZ of FPCR
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


def _processor() -> str:
    return simd.target()[0].partition("-")[0]


def _read(b: Any) -> Any:
    if _processor() == "aarch64":
        return simd.call_intrinsic(b, "llvm.aarch64.get.fpcr", _I64)
    if _processor() != "x86_64":
        return _I64(0)
    slot = _slot(b)
    simd.call_intrinsic(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), b.bitcast(slot, _I8.as_pointer()))
    return b.zext(b.load(slot), _I64)


def _write(b: Any, mode: Any) -> None:
    if _processor() == "aarch64":
        simd.call_intrinsic(b, "llvm.aarch64.set.fpcr", ir.VoidType(), mode)
    if _processor() == "x86_64":
        slot = _slot(b)
        b.store(b.trunc(mode, _I32), slot)
        simd.call_intrinsic(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), b.bitcast(slot, _I8.as_pointer()))


def _slot(b: Any) -> Any:
    with b.goto_entry_block():
        return b.alloca(_I32)


def _flush(b: Any) -> Any:
    before = _read(b)
    _write(b, b.or_(before, _I64(FLUSH.get(_processor(), 0))))
    return before


flush_denormals = simd.operation(types.int64(), _flush)  # returns the thread's mode before, for `restore`
restore = simd.operation(types.void(types.int64), _write)
