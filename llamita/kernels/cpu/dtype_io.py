"""Load and store every dtype: in a register everything is fp32.

A dtype is a compile-time constant of a kernel, so only its branch of each function is compiled.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline

FP32, BF16, FP16 = 0, 1, 2  # their order in `constants.DTYPES`


@inline
def size(dtype: int) -> int:
    """Bytes of an element."""
    return 4 if dtype == FP32 else 2


@inline
def wide(dtype: int, at: int, i: int) -> v.Vector:
    """Sixteen elements from the i-th on."""
    if dtype == FP32:
        return v.load(at + 4 * i)
    if dtype == BF16:
        return v.load_bf16(at + 2 * i)
    return v.load_fp16(at + 2 * i)


@inline
def put_wide(dtype: int, at: int, i: int, value: v.Vector) -> None:
    """Write sixteen elements, rounded to the nearest."""
    if dtype == FP32:
        v.store(at + 4 * i, value)
    elif dtype == BF16:
        v.store_bf16(at + 2 * i, value)
    else:
        v.store_fp16(at + 2 * i, value)


@inline
def one(dtype: int, at: int, i: int) -> float:
    """The i-th element."""
    if dtype == FP32:
        return v.read_fp32(at + 4 * i)
    if dtype == BF16:
        return v.read_bf16(at + 2 * i)
    return v.read_fp16(at + 2 * i)


@inline
def put(dtype: int, at: int, i: int, value: float) -> None:
    """Write the i-th element, rounded to the nearest."""
    if dtype == FP32:
        v.write_fp32(at + 4 * i, value)
    elif dtype == BF16:
        v.write_bf16(at + 2 * i, value)
    else:
        v.write_fp16(at + 2 * i, value)
