"""Embedding, norm, gate and rounded activations, each held to its reference bit for bit."""

import pytest
import torch
from torch import Tensor

from llamita.kernels import reference
from llamita.kernels.cpu import elementwise
from llamita.kernels.cpu.arguments import Embed, Gate, Norm, Round
from llamita.kernels.cpu.constants import NUMBERS, Q8_BLOCK
from tests.unit.kernels.cpu.launch import DTYPES, call, guarded

EMBED = dict(zip(DTYPES, (elementwise.embed_fp32, elementwise.embed_bf16, elementwise.embed_fp16), strict=True))


def blocks_of(rows: int, columns: int) -> Tensor:
    """Room for q8_blocks."""
    return torch.zeros(rows * columns // 32, Q8_BLOCK, dtype=torch.uint8)


def assert_blocks(blocks: Tensor, x: Tensor) -> None:
    """q8_blocks are those that the reference makes of x (rows, K)."""
    expected, scales = reference.quantize_activations(x)
    parts = blocks.view(-1, x.shape[1] // 32, Q8_BLOCK)
    assert torch.equal(parts[..., :32].contiguous().view(torch.int8).flatten(1), expected)
    assert torch.equal(parts[..., 32:36].contiguous().view(torch.float32)[..., 0], scales)
    halves = -expected.view(len(x), -1, 2, 16).int().sum(-1)
    sums = torch.cat((halves, halves.sum(-1, keepdim=True)), dim=-1).int()
    assert torch.equal(parts[..., 36:].contiguous().view(torch.int32), sums)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 37])
def test_embed(dtype: torch.dtype, width: int) -> None:
    weight, ids = torch.randn(11, width).to(dtype), torch.tensor([10, 0, 3, 3])
    out, behind = guarded(4, width)
    call(EMBED[dtype], Embed(ids, weight, out, width), chunks=4)
    assert torch.equal(out, weight[ids].float())
    assert bool((behind == 9).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 33, 100, 256])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1.0, 1e15])
def test_norm(dtype: torch.dtype, width: int, scale: float) -> None:
    x, weight = torch.randn(3, 1, width) * scale, torch.randn(width).to(dtype)
    before, (out, behind) = x.clone(), guarded(3, 1, width)
    call(elementwise.norm, Norm(x, weight, out, None, None, width, 1e-5, None, NUMBERS[dtype]), chunks=3)
    assert torch.equal(out, reference.norm(x, weight, 1e-5)) and bool(out.isfinite().all())
    assert bool((behind == 9).all()) and torch.equal(x, before)


@pytest.mark.parametrize("which", [[11], [3, 0, 7], list(range(12))], ids=len)
def test_norm_reads_the_rows_it_is_told_and_rounds(which: list[int]) -> None:
    x, weight, numbers = torch.randn(12, 96), torch.randn(96), torch.tensor(which)
    out, blocks = torch.empty(len(which), 96), blocks_of(len(which), 96)
    halves, behind = guarded(len(which), 96, dtype=torch.bfloat16)
    call(elementwise.norm, Norm(x, weight, out, halves, blocks, 96, 1e-5, numbers, 0), chunks=len(which))
    assert torch.equal(out, reference.norm(x[numbers], weight, 1e-5))
    assert torch.equal(halves, out.bfloat16()) and bool((behind == 9).all())
    assert_blocks(blocks, out)


@pytest.mark.parametrize("size", [1, 15, 16, 31, 32, 100, 1000])
def test_gate(size: int) -> None:
    first, second = torch.randn(size) * 5, torch.randn(size)
    out, behind = guarded(size)
    halves, behind_halves = guarded(size, dtype=torch.bfloat16)
    call(elementwise.gate, Gate(first, second, out, halves, None, 64, size), chunks=-(-size // 64))
    assert torch.equal(out, reference.silu_times(first, second)) and torch.equal(halves, out.bfloat16())
    torch.testing.assert_close(out, torch.nn.functional.silu(first) * second, rtol=1e-6, atol=1e-6)
    assert bool((behind == 9).all()) and bool((behind_halves == 9).all())


def test_gate_of_extremes_is_finite() -> None:
    first = torch.tensor([-1e30, -1e4, -200.0, -90.0, -88.0, 0.0, 88.0, 1e4, 1e30] * 4)  # lanes, then a tail
    out = torch.empty(36)
    call(elementwise.gate, Gate(first, torch.ones(36), out, None, None, 64, 36))
    torch.testing.assert_close(out, torch.nn.functional.silu(first), rtol=1e-6, atol=1e-6)


def test_gate_rounds_and_may_write_over_what_it_reads() -> None:
    first, second = torch.randn(3, 160), torch.randn(3, 160)
    blocks, expected = blocks_of(3, 160), reference.silu_times(first, second)
    call(elementwise.gate, Gate(first, second, first, None, blocks, 64, 480), chunks=8)
    assert torch.equal(first, expected)
    assert_blocks(blocks, first)


@pytest.mark.parametrize(("columns", "chunk"), [(32, 64), (96, 64), (2080, 64), (96, 288), (2080, 1120)])
def test_rounded_rows(columns: int, chunk: int) -> None:
    x = torch.randn(3, columns) * torch.logspace(-3, 3, 3 * columns // 32).repeat_interleave(32).view(3, columns)
    x[1, :32] = 0
    x[2, :32] = torch.arange(32) - 15.5  # halves, which go to even
    x[0, 5], x[1, 31] = 1e30, -1e30
    blocks, halves = blocks_of(3, columns), torch.zeros(3, columns, dtype=torch.bfloat16)
    call(elementwise.round_rows, Round(x, halves, blocks, chunk, x.numel()), chunks=-(-x.numel() // chunk))
    assert_blocks(blocks, x)
    assert torch.equal(halves, x.bfloat16())


@pytest.mark.parametrize("columns", [32, 160])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_block_with_a_value_that_is_not_finite_makes_products_that_are_not(columns: int, value: float) -> None:
    x = torch.randn(1, columns)
    x[0, columns - 7] = value
    blocks = blocks_of(1, columns)
    call(elementwise.round_rows, Round(x, None, blocks, columns, columns), chunks=1)
    scales = blocks.view(-1, Q8_BLOCK)[:, 32:36].contiguous().view(torch.float32).flatten()
    assert scales.isfinite().tolist() == [True] * (columns // 32 - 1) + [False]
