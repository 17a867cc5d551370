"""Triton's kernels on a CUDA device, against their references there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.kernels.cuda import operations, reference
from llamita.kernels.cuda.planes import Planes, pack
from llamita.kernels.quantized_blocks import QuantizedBlocks

pytestmark = pytest.mark.gpu

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CLOSE = {BF16: 1e-2, FP16: 2e-3, FP32: 1e-4}  # of the largest number expected

# bits, zero, columns a scale, columns a sub-scale, whether there is a minimum
FORMATS = {
    "q8_0": (8, 128, 32, 0, False),
    "q4_0": (4, 8, 32, 0, False),
    "q4_1": (4, 0, 32, 0, True),
    "q4_k": (4, 0, 256, 32, True),
    "q5_k": (5, 0, 256, 32, True),
    "q6_k": (6, 32, 256, 16, False),
}


def random_planes(form: str, rows: int, columns: int) -> Planes:
    bits, zero, block, span, has_minimum = FORMATS[form]
    signed, low = (torch.int8, -128) if span == 16 else (torch.uint8, 0)
    fine = (rows, columns // span) if span else None
    codes = QuantizedBlocks(
        torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8),
        bits=bits,
        zero=zero,
        scale=(torch.rand(rows, columns // block) * 0.02 - 0.01).half(),
        minimum=(torch.rand(rows, columns // block) * 0.1 - 0.05).half() if has_minimum else None,
        sub_scale=torch.randint(low, 64, fine, dtype=signed) if fine else None,
        sub_minimum=torch.randint(0, 64, fine, dtype=torch.uint8) if fine and has_minimum else None,
    )
    return pack(codes).to("cuda")


def assert_near(out: Tensor, expected: Tensor) -> None:
    assert out.dtype == expected.dtype and out.isfinite().all()
    limit = CLOSE[out.dtype] * expected.float().abs().max().clamp(min=1.0)
    assert (out.float() - expected.float()).abs().max() <= limit


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """Keep the references' products in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False


def test_this_gpu_takes_the_kernels() -> None:
    operations.require(torch.device("cuda"))
    assert operations.feature(torch.device("cuda", 0)) == "triton"


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32)], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 16])
@pytest.mark.parametrize("shape", [(130, 1500), (2048, 8192), (5, 33)], ids=str)
def test_few_rows(shape: tuple[int, int], tokens: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, weight = torch.randn(tokens, shape[1]).to("cuda", dtypes[0]), torch.randn(shape).to("cuda", dtypes[1])
    bias = torch.randn(shape[0]).to("cuda", dtypes[1])
    assert_near(operations.few_rows(x, weight, bias), reference.few_rows(x, weight, bias))


def check_blocks(form: str, shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> None:
    planes, x = random_planes(form, *shape), torch.randn(tokens, shape[1]).to("cuda", dtype)
    bias = torch.randn(shape[0]).to("cuda", dtype)
    out = operations.few_rows_blocks(x, *planes.tensors, bias, planes.bits, planes.zero)
    assert_near(out, reference.few_rows_blocks(x, planes, bias))


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("shape", [(130, 2304), (1024, 4096)], ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_few_rows_blocks(form: str, shape: tuple[int, int], tokens: int) -> None:
    check_blocks(form, shape, tokens, BF16)


@pytest.mark.parametrize("dtype", [FP16, FP32], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("form", ["q8_0", "q4_k"])
def test_few_rows_blocks_of_other_inputs(form: str, tokens: int, dtype: torch.dtype) -> None:
    check_blocks(form, (70, 2304), tokens, dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_dequantize_bit_for_bit(form: str) -> None:
    planes = random_planes(form, 37, 1280)
    for dtype in (FP32, BF16, FP16):
        out = operations.dequantize(*planes.tensors, planes.bits, planes.zero, dtype)
        assert torch.equal(out, reference.dequantize(planes, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 48), (5, 1000), (1, 16384)], ids=str)
def test_rms_norm_rounds_where_llama_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, delta = torch.randn(2, *shape).to("cuda", dtype)
    weight = (1 + torch.randn(shape[-1]) / 4).to("cuda", dtype)
    out, total = operations.add_rms_norm(x, delta, weight, 1e-5)
    expected, sum_ = reference.add_rms_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, sum_)
    for ours, theirs in ((out, expected), (operations.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))):
        assert_near(ours, theirs)
        assert dtype == FP32 or (ours != theirs).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_silu_gate(dtype: torch.dtype) -> None:
    gate, up = (3 * torch.randn(3, 2 * 2500)).to("cuda", dtype).chunk(2, -1)
    out, expected = operations.silu_gate(gate, up), reference.silu_gate(gate, up)
    assert_near(out, expected)
    assert dtype == FP32 or (out != expected).float().mean() < 0.01


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP16, FP16), (BF16, FP32), (FP32, FP32)], ids=str)
@pytest.mark.parametrize("start", [0, 4, 6])
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_rotate_and_store(head_dim: int, start: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    qkv = torch.randn(2, 3, 10, head_dim).to("cuda", dtypes[0])
    q, k, v = qkv.split((6, 2, 2), dim=2)
    angles = torch.rand(1, 3, 1, head_dim // 2).repeat(1, 1, 1, 2).cuda() * 6
    cos, sin, at = angles.cos().to(dtypes[1]), angles.sin().to(dtypes[1]), torch.tensor(start, device="cuda")
    rooms = torch.randn(2, 2, 2, 8, head_dim).to("cuda", dtypes[0])
    (keys, values), (keys_expected, values_expected) = rooms.clone(), rooms.clone()
    out = operations.rotate_and_store(q, k, v, cos, sin, at, keys, values)
    expected = reference.rotate_and_store(q, k, v, cos, sin, at, keys_expected, values_expected)
    assert torch.equal(values, values_expected)
    for ours, theirs in ((out, expected), (keys, keys_expected)):
        assert_near(ours, theirs)
        assert (ours != theirs).float().mean() < 0.01


def test_compiled_code_calls_them() -> None:
    def block(x: Tensor, weight: Tensor) -> Tensor:
        return operations.silu_gate(operations.rms_norm(x, weight, 1e-5), x)

    given: Any = torch.randn(3, 64).cuda().bfloat16(), torch.randn(64).cuda().bfloat16()
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(*given), block(*given))
