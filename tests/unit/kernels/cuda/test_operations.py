"""Triton's kernels: their packing and their operations here; they themselves in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.errors import UnsupportedError
from llamita.kernels.cuda import operations, reference
from llamita.kernels.cuda.planes import Planes, pack, unpack
from llamita.kernels.quantized_blocks import QuantizedBlocks
from llamita.model.layers import LlamaRMSNorm
from llamita.model.rope import rotate_in_fp32, rotate_in_model_dtype


def run_apart(name: str, environment: dict[str, str]) -> None:
    """Run a file of tests in a process whose environment Triton reads while it is imported."""
    pytest.importorskip("triton", exc_type=ImportError)
    file = Path(__file__).with_name(name)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "PYTEST_"))}
    python_path = os.pathsep.join((str(file.parent), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command, env=kept | {"PYTHONPATH": python_path} | environment, capture_output=True, text=True, check=False
    )
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "cannot work with this numpy" in done.stdout:
        pytest.skip("Triton's interpreter cannot work with this numpy")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_kernels_in_the_interpreter() -> None:
    run_apart("triton_cases.py", {"TRITON_INTERPRET": "1"})


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    run_apart("triton_compiles.py", {"TRITON_CACHE_DIR": str(tmp_path)})


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_packing_is_exact_and_reversible(bits: int) -> None:
    numbers = torch.randint(0, 2**bits, (7, 96), dtype=torch.uint8)
    numbers[0] = 2**bits - 1  # the sign bits of the words
    sub = torch.randint(-128, 128, (7, 6), dtype=torch.int8)
    codes = QuantizedBlocks(numbers, bits=bits, zero=3, scale=torch.randn(7, 3).half(), sub_scale=sub)
    planes = pack(codes)
    assert planes.shape == (7, 96)
    assert planes.nbytes == 7 * (96 * bits // 8 + 3 * 2 + 6)
    back = unpack(planes)
    assert torch.equal(back.codes, numbers) and (back.bits, back.zero) == (bits, 3)
    assert torch.equal(reference.dequantize(planes, torch.float32), codes.dequantize())


@pytest.mark.parametrize(
    "codes",
    [
        QuantizedBlocks(
            torch.zeros(2, 32).byte(), bits=4, zero=0, scale=torch.ones(2, 1).half(), values=torch.zeros(16).char()
        ),
        QuantizedBlocks(torch.zeros(2, 32).byte(), bits=4, zero=8, scale=torch.ones(2, 1).char()),
    ],
    ids=["values", "powers of two"],
)
def test_codes_that_the_kernels_do_not_know_are_refused(codes: QuantizedBlocks) -> None:
    with pytest.raises(UnsupportedError, match="kernels for GPUs know only codes that are steps of an fp16 scale"):
        pack(codes)


def test_a_word_holds_the_columns_of_one_lane() -> None:
    numbers = torch.zeros(1, 32, dtype=torch.uint8)
    numbers[0, 4 * 3 + 2] = 13  # field 3 of lane 2
    words = pack(QuantizedBlocks(numbers, bits=4, zero=0, scale=torch.ones(1, 1).half())).words
    assert words.tolist() == [[0, 0, 13 << 12, 0]]


def test_the_reference_norm_is_llamas() -> None:
    norm, x, delta = LlamaRMSNorm(48, eps=1e-5), *torch.randn(2, 5, 48).bfloat16()
    torch.nn.init.normal_(norm.weight)
    norm = norm.bfloat16()
    out, total = reference.add_rms_norm(x, delta, norm.weight, 1e-5)
    assert torch.equal(reference.rms_norm(x, norm.weight, 1e-5), norm(x))
    assert torch.equal(out, norm(x + delta)) and torch.equal(total, x + delta)


@pytest.mark.parametrize("rotate", [rotate_in_model_dtype, rotate_in_fp32])
def test_the_reference_rotation_is_the_models(rotate: Any) -> None:
    q, k, v = torch.randn(2, 3, 6, 10).bfloat16(), *torch.randn(2, 2, 3, 2, 10).bfloat16()
    angles = torch.rand(1, 3, 1, 5).repeat(1, 1, 1, 2)
    dtype = torch.bfloat16 if rotate is rotate_in_model_dtype else torch.float32
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    keys, values = torch.zeros(2, 2, 2, 9, 10).bfloat16()
    out = reference.rotate_and_store(q, k, v, cos, sin, torch.tensor(5), keys, values)
    assert torch.equal(out, rotate(q, cos, sin))
    assert torch.equal(keys[:, :, 5:8], rotate(k, cos, sin).transpose(1, 2))
    assert torch.equal(values[:, :, 5:8], v.transpose(1, 2))
    assert not keys[:, :, :5].any() and not keys[:, :, 8:].any()


def test_what_does_not_fit_the_cache_is_left_out() -> None:
    q = k = v = torch.randn(1, 3, 2, 4)
    keys, values = torch.zeros(2, 1, 2, 5, 4)
    cos, sin = torch.ones(1, 3, 1, 4), torch.zeros(1, 3, 1, 4)
    reference.rotate_and_store(q, k, v, cos, sin, torch.tensor(4), keys, values)
    assert torch.equal(values[:, :, 4], v[:, 0]) and not values[:, :, :4].any()


def planes_of(bits: int = 4) -> Planes:
    numbers = torch.randint(0, 2**bits, (6, 64), dtype=torch.uint8)
    return pack(
        QuantizedBlocks(numbers, bits=bits, zero=8, scale=torch.rand(6, 2).half(), minimum=torch.rand(6, 2).half())
    )


def calls() -> dict[str, tuple[Any, ...]]:
    x, weight = torch.randn(3, 64), torch.randn(64)
    heads = torch.randn(2, 3, 4, 8)
    planes = planes_of()
    return {
        "few_rows": (x, torch.randn(5, 64), torch.randn(5)),
        "few_rows_blocks": (x, *planes.tensors, torch.randn(6), planes.bits, planes.zero),
        "dequantize": (*planes.tensors, planes.bits, planes.zero, torch.float16),
        "rms_norm": (x, weight, 1e-5),
        "add_rms_norm": (x, x + 1, weight, 1e-5),
        "silu_gate": (x, x + 1),
        "rotate_and_store": (
            heads, heads[:, :, :2], heads[:, :, 2:], torch.rand(1, 3, 1, 8), torch.rand(1, 3, 1, 8),
            torch.tensor(2), torch.zeros(2, 2, 9, 8), torch.zeros(2, 2, 9, 8),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls())
def test_operations_are_well_formed(name: str) -> None:
    """Schema, fake kernel and dispatch, by torch's own checker."""
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(operations, name), calls()[name], test_utils=checks)


def test_every_operation_has_a_kernel_and_a_reference() -> None:
    names = set(calls())
    assert {operation for operation, _ in operations.TABLE} == names
    assert {feature for _, feature in operations.TABLE} == {"triton", "torch"}
    assert len(operations.TABLE) == 2 * len(names)
    assert set(operations.references()) == names


def test_compile_and_export_see_the_operations() -> None:
    class Block(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return operations.silu_gate(operations.rms_norm(x, weight, 1e-5), x)

    x, weight = torch.randn(3, 64), torch.randn(64)
    expected = Block()(x, weight)
    assert torch.equal(torch.compile(Block(), backend="aot_eager", fullgraph=True)(x, weight), expected)
    exported = torch.export.export(Block(), (x, weight))
    assert "llamita_gpu.rms_norm" in str(exported.graph) and "llamita_gpu.silu_gate" in str(exported.graph)
    assert torch.equal(exported.module()(x, weight), expected)


def test_a_machine_without_a_gpu_takes_the_reference_and_says_so_when_asked_for_kernels() -> None:
    assert operations.feature(torch.device("cpu")) == "torch"
    with pytest.raises(UnsupportedError, match="run on a GPU, not on cpu: move the model to cuda"):
        operations.require(torch.device("cpu"))


def test_the_absence_of_triton_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="Triton is not installed: pip install triton") as caught:
        operations.require(torch.device("cuda"))
    assert "\n" not in str(caught.value)


def test_importing_the_operations_loads_no_triton() -> None:
    code = "import sys, llamita.kernels.cuda.operations; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
