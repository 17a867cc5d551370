"""fp16 to fp32 and back: every pattern, by the machine's own instruction and in integers."""

from dataclasses import replace

import pytest
import torch

from llamita.kernels.cpu import half_precision
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu import simd_code as code
from llamita.kernels.cpu.runtime.program import Kernel, kernel
from tests.unit.kernels.cpu.launch import launch

PATTERNS = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
QUIET = 1 << 22  # the bit of a NaN that operations on it set
HALVES = PATTERNS.view(torch.float16)


def both_ways() -> tuple[Kernel, Kernel]:
    """Kernels that widen and that narrow sixteen numbers, and each of these by itself."""
    wide, whole, narrow = code.FLOATS, code.WORDS, v.ir.VectorType(code.I16, 16)
    half, one = half_precision, (code.I32, code.F32, code.I16)
    load = v.operation(v.Floats(v.i64), lambda b, at: half.widened_fp16(b, code.read(b, at, narrow), whole, wide))
    read = v.operation(v.f32(v.i64), lambda b, at: half.widened_fp16(b, code.read(b, at, one[2], 2), one[0], one[1]))
    store = v.operation(
        v.void(v.i64, v.Floats), lambda b, at, x: code.write(b, at, half.narrow_fp16(b, x, whole, narrow))
    )
    write = v.operation(
        v.void(v.i64, v.f32), lambda b, at, x: code.write(b, at, half.narrow_fp16(b, x, one[0], one[2]), 2)
    )

    def widen(at: int, chunk: int) -> None:
        x, out, single = v.read(at) + 32 * chunk, v.read(at + 8) + 64 * chunk, v.read(at + 16) + 64 * chunk
        v.store(out, load(x))
        for i in range(16):
            v.write_fp32(single + 4 * i, read(x + 2 * i))

    def narrowed(at: int, chunk: int) -> None:
        x, out, single = v.read(at) + 64 * chunk, v.read(at + 8) + 32 * chunk, v.read(at + 16) + 32 * chunk
        store(out, v.load(x))
        for i in range(16):
            write(single + 2 * i, v.read_fp32(x + 4 * i))

    return kernel(widen), kernel(narrowed)


@pytest.mark.parametrize("way", ["here", "integers"])
def test_every_fp16_and_what_lies_between(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take a denormal fp32 for 0, and no denormal fp16 becomes one."""
    if way != "here":
        monkeypatch.setattr(half_precision, "instructions", lambda: replace(v.instructions(), fp16=way))
    widen, narrow = both_ways()
    wide, single = torch.empty(2, len(HALVES))
    launch(widen, HALVES, wide, single, chunks=len(HALVES) // 16)
    expected = torch.where(
        HALVES.isnan(), (HALVES.float().view(torch.int32) | QUIET).view(torch.float32), HALVES.float()
    )
    assert torch.equal(wide.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(single.view(torch.int32), expected.view(torch.int32))
    numbers = HALVES.float().nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf).sort().values
    between = (numbers[:-1] + numbers[1:]).nan_to_num(nan=0.0) / 2
    near = torch.cat((numbers, between, numbers * (1 + 2**-23), numbers * (1 - 2**-23)))
    near = near[: len(near) // 16 * 16].contiguous()
    out, one = torch.empty(2, len(near), dtype=torch.float16)
    launch(narrow, near, out, one, chunks=len(near) // 16)
    assert torch.equal(out, near.half()) and torch.equal(one, near.half())
    out, one = torch.empty(2, len(wide), dtype=torch.float16)
    launch(narrow, wide, out, one, chunks=len(wide) // 16)
    back = torch.where(HALVES.isnan(), PATTERNS | QUIET >> 13, PATTERNS)
    assert torch.equal(out.view(torch.int16), back) and torch.equal(one.view(torch.int16), back)
