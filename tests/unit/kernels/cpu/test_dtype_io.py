"""Numbers of every dtype, read and written sixteen at a time and one by one."""

import pytest
import torch

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline, kernel
from tests.unit.kernels.cpu.launch import DTYPES, launch


@inline
def _copy(dtype, at, chunk):
    x, wide, single = v.read(at), v.read(at + 8), v.read(at + 16)
    e.put_wide(dtype, wide, 16 * chunk, v.load(x + 64 * chunk))
    for i in range(16 * chunk, 16 * chunk + 16):
        e.put(dtype, single, i, v.read_fp32(x + 4 * i))


@kernel
def copy_fp32(at: int, chunk: int) -> None:
    """x fp32, and two copies."""
    _copy(e.FP32, at, chunk)


@kernel
def copy_bf16(at: int, chunk: int) -> None:
    """Copies in bf16."""
    _copy(e.BF16, at, chunk)


@kernel
def copy_fp16(at: int, chunk: int) -> None:
    """Copies in fp16."""
    _copy(e.FP16, at, chunk)


COPY = dict(zip(DTYPES, (copy_fp32, copy_bf16, copy_fp16), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_of_number_is_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    """A copy in sixteens and one by one, of numbers from the smallest to the endless, and of halfway ones."""
    patterns = torch.randint(-(1 << 31), 1 << 31, (16_000,), dtype=torch.int64).int()
    patterns[::3] &= -(1 << 12)  # many ties
    x = torch.cat((patterns.view(torch.float32), torch.randn(1584) * 1e-7, torch.tensor([0.0, -0.0, torch.inf] * 32)))
    x = x.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf)
    wide, single = torch.empty(2, len(x), dtype=dtype)
    launch(COPY[dtype], x, wide, single, chunks=len(x) // 16)
    assert torch.equal(wide, x.to(dtype)) and torch.equal(single, x.to(dtype))
