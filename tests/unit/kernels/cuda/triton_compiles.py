"""The Triton kernels through Triton's compiler to machine code of a GPU that need not be there.

Run by test_operations.py.

What the interpreter lets pass and the compiler does not (types that differ between branches, for one) shows here, and
so does a kernel whose values do not fit the registers.
"""

# ruff: noqa: E402 - what follows importorskip needs Triton

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", exc_type=ImportError)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_cases import BF16, FORMATS, FP16, FP32, random_planes

from llamita.kernels.cuda import blocks, dense, gate, norm, rotary

assert "TRITON_INTERPRET" not in os.environ
MOST_STACK = 32  # bytes a thread: a few registers
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Machine:
    """What Triton asks a driver for before it compiles: a GPU of this compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # a number of its own, since Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[90])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that a test's calls compile; none is started."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **options))
        return kernels[-1]

    monkeypatch.setattr(JITFunction, "run", compile_only)
    driver.set_active(Machine(request.param))
    return kernels


def assert_fits(kernels: list[Any], tmp_path: Path) -> None:
    """Machine code was made, and next to nothing spilled from registers into memory."""
    assert kernels
    for kernel in kernels:
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([BIN / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True)
        found = re.search(r"STACK:(\d+)", usage.stdout)
        assert found and int(found[1]) <= MOST_STACK, usage.stdout


@pytest.mark.parametrize("form", FORMATS)
def test_blocks(form: str, compiled: list[Any], tmp_path: Path) -> None:
    planes = random_planes(form, 64, 2048)
    for tokens in (1, 4, 9):
        blocks.few_rows_blocks(torch.randn(tokens, 2048).to(BF16), planes, None)
    blocks.dequantize(planes, BF16)
    assert_fits(compiled, tmp_path)


@pytest.mark.parametrize("dtype", [FP16, FP32], ids=str)
@pytest.mark.parametrize("compiled", [80], indirect=True)
def test_blocks_of_other_inputs(dtype: torch.dtype, compiled: list[Any], tmp_path: Path) -> None:
    for form in ("q8_0", "q4_k"):
        for tokens in (1, 2, 9):
            blocks.few_rows_blocks(torch.randn(tokens, 2048).to(dtype), random_planes(form, 64, 2048), None)
    assert_fits(compiled, tmp_path)


def test_sizes_of_one(compiled: list[Any], tmp_path: Path) -> None:
    """Triton makes constants of arguments that are 1, and a constant has fewer methods than a number."""
    for tokens in (1, 2, 9):
        blocks.few_rows_blocks(torch.randn(tokens, 32), random_planes("q4_0", 1, 32), torch.randn(1))
        dense.few_rows(torch.randn(tokens, 1), torch.randn(1, 1), torch.randn(1))
    blocks.dequantize(random_planes("q8_0", 1, 32), FP32)
    norm.rms_norm(torch.randn(1, 1), torch.randn(1), 1e-5)
    gate.silu_gate(torch.randn(1, 1), torch.randn(1, 1))
    x = torch.randn(1, 1, 1, 2)
    rotary.rotate_and_store(x, x, x, x, x, torch.tensor(0), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert_fits(compiled, tmp_path)


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32)], ids=str)
def test_dense(dtypes: tuple[torch.dtype, torch.dtype], compiled: list[Any], tmp_path: Path) -> None:
    weight, bias = torch.randn(96, 2048).to(dtypes[1]), torch.randn(96).to(dtypes[1])
    for tokens in (1, 9):
        dense.few_rows(torch.randn(tokens, 2048).to(dtypes[0]), weight, bias)
    assert_fits(compiled, tmp_path)


@pytest.mark.parametrize("compiled", [80, 90], indirect=True)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_rest(dtype: torch.dtype, compiled: list[Any], tmp_path: Path) -> None:
    x = torch.randn(2, 3, 2048).to(dtype)
    norm.rms_norm(x, x[0, 0], 1e-5)
    norm.add_rms_norm(x, x, x[0, 0], 1e-5)
    gate.silu_gate(x, x)
    gate.silu_gate(*torch.randn(2, 1, 176).to(dtype).chunk(2, -1))
    q, k, angles = (torch.randn(2, 3, heads, 64).to(dtype) for heads in (8, 2, 1))
    for cos in (angles, angles.float()):
        rotary.rotate_and_store(q, k, k, cos, cos, torch.tensor(3), *torch.zeros(2, 2, 2, 9, 64).to(dtype))
    assert_fits(compiled, tmp_path)
