"""The Triton kernels in Triton's interpreter, on the CPU: run by test_operations.py with TRITON_INTERPRET=1 set.

The interpreter cuts bf16 off where a GPU rounds it, so that exact comparisons are of fp16, whose rounding it has right;
and its `dot` takes the bits of bf16 for integers, so that there the products are of fp32.
"""

# ruff: noqa: E402 - what follows importorskip needs Triton

import os

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", exc_type=ImportError)

import triton.language as tl

from llamita.kernels.cuda import blocks, dense, gate, norm, reference, rotary
from llamita.kernels.cuda.planes import Planes, pack
from llamita.kernels.quantized_blocks import QuantizedBlocks

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CLOSE = {BF16: (2e-2, 2e-2), FP16: (2e-3, 2e-3), FP32: (1e-4, 1e-4)}  # atol, rtol

# bits, zero, columns a scale, columns a sub-scale, whether there is a minimum
FORMATS = {
    "q8_0": (8, 128, 32, 0, False),
    "q4_0": (4, 8, 32, 0, False),
    "q4_1": (4, 0, 32, 0, True),
    "q4_k": (4, 0, 256, 32, True),
    "q5_k": (5, 0, 256, 32, True),
    "q6_k": (6, 32, 256, 16, False),
}


@triton.jit
def _count_to(number):
    for _ in range(number):
        pass


if "TRITON_INTERPRET" in os.environ:
    try:
        _count_to[(1,)](3)
    except triton.runtime.errors.InterpreterError:
        pytest.skip(f"Triton {triton.__version__}'s interpreter cannot work with this numpy", allow_module_level=True)


@pytest.fixture(autouse=True)
def dot_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have products that a GPU does in bf16 done in fp32."""

    def widened(inputs: torch.dtype, weights: torch.dtype) -> tl.dtype:
        chosen = operand(inputs, weights)
        return tl.float32 if chosen == tl.bfloat16 else chosen

    operand = dense.operand
    monkeypatch.setattr(dense, "operand", widened)
    monkeypatch.setattr(blocks, "operand", widened)


def random_planes(form: str, rows: int, columns: int) -> Planes:
    bits, zero, block, span, has_minimum = FORMATS[form]
    whole = (rows, columns // block)
    signed = torch.int8 if span == 16 else torch.uint8
    low = -128 if span == 16 else 0
    fine = (rows, columns // span) if span else None
    codes = QuantizedBlocks(
        torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8),
        bits=bits,
        zero=zero,
        scale=(torch.rand(whole) * 0.02 - 0.01).half(),
        minimum=(torch.rand(whole) * 0.1 - 0.05).half() if has_minimum else None,
        sub_scale=torch.randint(low, 64, fine, dtype=signed) if fine else None,
        sub_minimum=torch.randint(0, 64, fine, dtype=torch.uint8) if fine and has_minimum else None,
    )
    planes = pack(codes)
    assert torch.equal(reference.dequantize(planes, FP32), codes.dequantize())
    return planes


def assert_near(out: Tensor, expected: Tensor) -> None:
    assert out.dtype == expected.dtype
    atol, rtol = CLOSE[out.dtype]
    scale = expected.float().abs().max().clamp(min=1.0)
    torch.testing.assert_close(out.float() / scale, expected.float() / scale, atol=atol, rtol=rtol)


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32)], ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 48), (1, 130, 1500), (2, 5, 33), (5, 37, 300), (16, 16, 128)], ids=str)
def test_few_rows(shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    tokens, rows, columns = shape
    x, weight = torch.randn(tokens, columns).to(dtypes[0]), torch.randn(rows, columns).to(dtypes[1])
    bias = torch.randn(rows).to(dtypes[1]) if rows % 2 else None
    assert_near(dense.few_rows(x, weight, bias), reference.few_rows(x, weight, bias))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 7, 256), (1, 10, 2304), (3, 19, 768), (4, 6, 512), (5, 19, 768), (16, 33, 512)], ids=str
)
@pytest.mark.parametrize("form", FORMATS)
def test_few_rows_blocks(form: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, rows, columns = shape
    planes = random_planes(form, rows, columns)
    x, bias = torch.randn(tokens, columns).to(dtype), torch.randn(rows).to(dtype)
    assert_near(blocks.few_rows_blocks(x, planes, bias), reference.few_rows_blocks(x, planes, bias))


@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_few_rows_blocks_where_columns_are_no_multiple_of_256(form: str, tokens: int) -> None:
    planes = random_planes(form, 9, 2080)
    x = torch.randn(tokens, 2080)
    assert_near(blocks.few_rows_blocks(x, planes, None), reference.few_rows_blocks(x, planes, None))


def test_sizes_of_one() -> None:
    for tokens in (1, 2, 9):
        planes, x, bias = random_planes("q4_0", 1, 32), torch.randn(tokens, 32), torch.randn(1)
        assert_near(blocks.few_rows_blocks(x, planes, bias), reference.few_rows_blocks(x, planes, bias))
        x, weight = torch.randn(tokens, 1), torch.randn(1, 1)
        assert_near(dense.few_rows(x, weight, bias), reference.few_rows(x, weight, bias))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("columns", [256, 1280])
def test_dequantize_bit_for_bit(form: str, columns: int) -> None:
    planes = random_planes(form, 5, columns)
    for dtype in (FP32, FP16):
        assert torch.equal(blocks.dequantize(planes, dtype), reference.dequantize(planes, dtype))


def rounded_once(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in the other order: scaled in fp32, cast down at the end."""
    wide = x.float()
    return (weight.float() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pytest.mark.parametrize("shape", [(2, 3, 48), (5, 1000), (1, 2048)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("added", [False, True])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, added: bool) -> None:
    x, delta = torch.randn(2, *shape).to(dtype)
    weight = (1 + torch.randn(shape[-1]) / 4).to(dtype)
    if not added:
        assert_near(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
        return
    out, total = norm.add_rms_norm(x, delta, weight, 1e-5)
    expected, sum_ = reference.add_rms_norm(x, delta, weight, 1e-5)
    assert_near(out, expected)
    assert torch.equal(total, sum_) or dtype == BF16


def test_rms_norm_rounds_where_llama_does() -> None:
    x, weight = torch.randn(64, 1000).half(), (1 + torch.randn(1000) / 4).half()
    expected = reference.rms_norm(x, weight, 1e-5)
    out, total = norm.add_rms_norm(x, torch.zeros_like(x), weight, 1e-5)
    assert torch.equal(total, x)
    # The order of a sum of 1000 moves the last bit of fp32, which seldom reaches fp16's.
    assert (out != expected).float().mean() < 1e-3
    assert (rounded_once(x, weight, 1e-5) != expected).float().mean() > 0.1


def test_rms_norm_of_a_weight_of_another_dtype() -> None:
    x, weight = torch.randn(3, 40).half(), torch.randn(40)
    assert_near(norm.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 88), (1, 2500)], ids=str)
def test_silu_gate(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate_, up = (3 * torch.randn(*shape[:-1], 2 * shape[-1])).to(dtype).chunk(2, -1)
    out, expected = gate.silu_gate(gate_, up), reference.silu_gate(gate_, up)
    assert_near(out, expected)
    if dtype == FP16:
        assert (out != expected).float().mean() < 1e-2
        assert ((gate_.float().sigmoid() * gate_.float() * up.float()).half() != expected).float().mean() > 0.1


@pytest.mark.parametrize(("angle_rows", "head_dim"), [(1, 10), (2, 64)])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP16, FP16), (FP16, FP32), (FP32, FP32)], ids=str)
@pytest.mark.parametrize("start", [0, 4, 6])
def test_rotate_and_store(start: int, dtypes: tuple[torch.dtype, torch.dtype], angle_rows: int, head_dim: int) -> None:
    batch, tokens, q_heads, k_heads, slots = 2, 3, 6, 2, 8
    width = (q_heads + 2 * k_heads) * head_dim
    qkv = torch.randn(batch, tokens, width).to(dtypes[0]).unflatten(-1, (-1, head_dim))
    q, k, v = qkv.split((q_heads, k_heads, k_heads), dim=2)  # views of one tensor, as a fused projection gives them
    angles = torch.rand(angle_rows, tokens, 1, head_dim // 2).repeat(1, 1, 1, 2) * 6
    cos, sin = angles.cos().to(dtypes[1]), angles.sin().to(dtypes[1])
    rooms = torch.randn(2, batch, k_heads, slots, head_dim).to(dtypes[0])
    keys, values = rooms.clone()
    keys_expected, values_expected = rooms.clone()
    at = torch.tensor(start)
    out = rotary.rotate_and_store(q, k, v, cos, sin, at, keys, values)
    expected = reference.rotate_and_store(q, k, v, cos, sin, at, keys_expected, values_expected)
    assert torch.equal(values, values_expected)
    for ours, theirs in ((out, expected), (keys, keys_expected)):
        assert_near(ours, theirs)
        assert torch.equal(ours, theirs) or dtypes[0] == BF16
    assert torch.equal(keys[:, :, :start], rooms[0, :, :, :start])  # what was there stays
    assert not torch.equal(keys[:, :, start], rooms[0, :, :, start])


def test_rotate_and_store_into_a_cache_of_another_dtype() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8).half()
    angles = torch.rand(1, 1, 1, 8).half()
    keys, values = torch.zeros(2, 1, 4, 5, 8)
    expected = [torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 5, 8)]
    at = torch.tensor(2)
    rotary.rotate_and_store(q, k, v, angles.cos(), angles.sin(), at, keys, values)
    reference.rotate_and_store(q, k, v, angles.cos(), angles.sin(), at, *expected)
    assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
