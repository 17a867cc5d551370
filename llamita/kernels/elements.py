"""How the dtypes that memory holds are read and written: everything is fp32 once it is in a register.

A dtype is three functions of Numba's, which a kernel gets as arguments and which are compiled into it: `wide(at, i)` sixteen
elements from the i-th on, `one(at, i)` the i-th, `put(at, i, value)`.
"""

import torch
from llamita.kernels import simd as v
from llamita.kernels.program import part


@part
def wide_fp32(at: int, i: int) -> v.Vector:
    """Sixteen fp32."""
    return v.load(at + 4 * i)


@part
def one_fp32(at: int, i: int) -> float:
    """One fp32."""
    return v.read_fp32(at + 4 * i)


@part
def put_fp32(at: int, i: int, value: float) -> None:
    """Write one fp32."""
    v.write_fp32(at + 4 * i, value)


@part
def wide_bf16(at: int, i: int) -> v.Vector:
    """Sixteen bf16."""
    return v.load_bf16(at + 2 * i)


@part
def one_bf16(at: int, i: int) -> float:
    """One bf16."""
    return v.read_bf16(at + 2 * i)


@part
def put_bf16(at: int, i: int, value: float) -> None:
    """Write one bf16, rounded to the nearest."""
    v.write_bf16(at + 2 * i, value)


@part
def wide_fp16(at: int, i: int) -> v.Vector:
    """Sixteen fp16."""
    return v.load_fp16(at + 2 * i)


@part
def one_fp16(at: int, i: int) -> float:
    """One fp16."""
    return v.read_fp16(at + 2 * i)


@part
def put_fp16(at: int, i: int, value: float) -> None:
    """Write one fp16, rounded to the nearest."""
    v.write_fp16(at + 2 * i, value)


DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # what kernels' names end in
