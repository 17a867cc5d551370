"""Embedding, norm, gate, angles and activations in bytes, each held to its reference."""

import math

import pytest
import torch
from torch import Tensor

from llamita.kernels import reference
from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import elementwise
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline, kernel
from tests.unit.kernels.cpu.launch import DTYPES, guarded, launch

EMBED = dict(zip(DTYPES, (elementwise.embed_fp32, elementwise.embed_bf16, elementwise.embed_fp16), strict=True))
NORM = dict(zip(DTYPES, (elementwise.norm_fp32, elementwise.norm_bf16, elementwise.norm_fp16), strict=True))
GATE = dict(zip(DTYPES, (elementwise.gate_fp32, elementwise.gate_bf16, elementwise.gate_fp16), strict=True))
ROUNDING = dict(zip(DTYPES, (1e-6, 2**-8, 2**-11), strict=True))  # half the distance of two numbers, and a little


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


@kernel
def exponentials(at: int, chunk: int) -> None:
    """Sixteen of them."""
    x, out = v.read(at) + 64 * chunk, v.read(at + 8) + 64 * chunk
    v.store(out, elementwise.exponential(v.load(x)))


def records_of(records: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes (rows, K), scales (rows, K/32) and the three negative sums (rows, K/32, 3) of records."""
    parts = records.view(-1, columns // 32, elementwise.RECORD)
    scales, sums = parts[..., 32:36].contiguous().view(torch.float32), parts[..., 36:].contiguous().view(torch.int32)
    return parts[..., :32].contiguous().view(torch.int8).flatten(1), scales[..., 0], sums


def assert_records(records: Tensor, x: Tensor) -> None:
    """Records are those that the reference makes of x (rows, K)."""
    expected, scales = reference.quantize_activations(x)
    seen, seen_scales, sums = records_of(records, x.shape[1])
    assert torch.equal(seen, expected)
    assert torch.equal(seen_scales, scales)
    halves = -expected.view(len(x), -1, 2, 16).int().sum(-1)
    assert torch.equal(sums, torch.cat((halves, halves.sum(-1, keepdim=True)), dim=-1).int())


def test_exponential_over_its_whole_range() -> None:
    x = torch.cat((torch.linspace(-87.3, 88, 160_000), torch.linspace(-1e-3, 1e-3, 16_000), torch.zeros(16)))
    out = torch.empty_like(x)
    launch(exponentials, x, out, chunks=len(x) // 16)
    expected = x.double().exp()
    assert float(((out - expected) / expected).abs().max()) < 2e-7
    assert bool((out[-16:] == 1).all())


def test_exponential_at_its_ends() -> None:
    x = torch.tensor(
        [-math.inf, -3e38, -1e4, -104.0, -103.0, -95.0, -88.0, -87.5, 88.0, 89.0, 3e38, math.inf, 0, 0, 0, 0]
    )
    out = torch.empty(16)
    launch(exponentials, x, out)
    assert out[:3].tolist() == [0, 0, 0]
    torch.testing.assert_close(out[3:8], x[3:8].exp(), rtol=0, atol=2e-45)  # subnormal: the last place is absolute
    torch.testing.assert_close(out[8:12], torch.full((4,), math.exp(88.0)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 37])
def test_embed(dtype: torch.dtype, width: int) -> None:
    weight, ids = torch.randn(11, width).to(dtype), torch.tensor([10, 0, 3, 3])
    out, behind = guarded(4, width)
    launch(EMBED[dtype], ids, weight, out, width, chunks=4)
    assert torch.equal(out, weight[ids].float())
    assert bool((behind == 9).all())


@pytest.mark.parametrize("width", [1, 15, 16, 33, 100, 256])
def test_norm(width: int) -> None:
    x, weight = torch.randn(3, 1, width), torch.randn(width)
    before, (out, behind) = x.clone(), guarded(3, 1, width)
    launch(elementwise.norm_fp32, x, None, weight, out, width, 1e-5, None, 1, 1, chunks=3)
    torch.testing.assert_close(out, reference.norm(x, weight, 1e-5), rtol=1e-6, atol=1e-6)
    assert bool((behind == 9).all()) and torch.equal(x, before)


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e15])
def test_norm_of_extremes(scale: float) -> None:
    x, weight = torch.randn(1, 1, 40) * scale, torch.randn(40)
    out = torch.empty(1, 1, 40)
    launch(elementwise.norm_fp32, x, None, weight, out, 40, 1e-6, None, 1, 1)
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out, reference.norm(x, weight, 1e-6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [5, 37, 64])
def test_norm_adds_first_and_keeps_the_sum(dtype: torch.dtype, width: int) -> None:
    x, y, weight = torch.randn(2, 3, width), torch.randn(2, 3, width).to(dtype), torch.randn(width)
    out, total = torch.empty(2, 3, width, dtype=dtype), x + y.float()
    launch(NORM[dtype], x, y, weight, out, width, 1e-5, None, 3, 3, chunks=6)
    assert torch.equal(x, total)
    expected = reference.norm(total, weight, 1e-5)
    torch.testing.assert_close(out.float(), expected, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_norm_reads_the_last_tokens_only_and_writes_bytes(kept: int) -> None:
    x, weight = torch.randn(3, 4, 96), torch.randn(96)
    out, records = torch.empty(3, kept, 96), torch.zeros(3 * kept * 3, elementwise.RECORD, dtype=torch.uint8)
    launch(elementwise.norm_fp32, x, None, weight, out, 96, 1e-5, records, 4, kept, chunks=3 * kept)
    torch.testing.assert_close(out, reference.norm(x[:, -kept:], weight, 1e-5), rtol=1e-6, atol=1e-6)
    assert_records(records, out.flatten(0, 1))


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [7, 16, 75])
def test_gate_of_halves(dtype: torch.dtype, size: int) -> None:
    first, second = torch.randn(2, size).to(dtype)
    out = torch.empty(size, dtype=dtype)
    launch(GATE[dtype], first, second, out, 32, size, None, chunks=-(-size // 32))
    torch.testing.assert_close(out.float(), reference.gate(first, second), rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("size", [1, 15, 16, 31, 32, 100, 1000])
def test_gate(size: int) -> None:
    first, second = torch.randn(size) * 5, torch.randn(size)
    out, behind = guarded(size)
    launch(elementwise.gate_fp32, first, second, out, 64, size, None, chunks=-(-size // 64))
    torch.testing.assert_close(out, reference.gate(first, second), rtol=1e-6, atol=1e-6)
    assert bool((behind == 9).all())


def test_gate_of_extremes_is_finite() -> None:
    first = torch.tensor([-1e30, -1e4, -200.0, -90.0, -88.0, 0.0, 88.0, 1e4, 1e30] * 4)  # lanes, then a tail
    out = torch.empty(36)
    launch(elementwise.gate_fp32, first, torch.ones(36), out, 64, 36, None)
    torch.testing.assert_close(out, reference.gate(first, torch.ones(36)), rtol=1e-6, atol=1e-6)


def test_gate_writes_bytes_and_may_write_over_what_it_reads() -> None:
    first, second = torch.randn(3, 160), torch.randn(3, 160)
    records, expected = torch.zeros(15, elementwise.RECORD, dtype=torch.uint8), reference.gate(first, second)
    launch(elementwise.gate_fp32, first, second, first, 64, 480, records, chunks=8)
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)
    assert_records(records, first)


@pytest.mark.parametrize("half", [1, 8, 16, 35])
def test_angles(half: int) -> None:
    positions, frequencies = torch.tensor([0, 1, 77, 131_071]), 10_000 ** -(torch.arange(half) / half)
    cosines, sines = torch.empty(4, half), torch.empty(4, half)
    launch(elementwise.angles, positions, frequencies, cosines, sines, half, 1.25, chunks=4)
    for out, expected in zip((cosines, sines), reference.angles(positions, frequencies, 1.25), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("columns", [32, 96, 2080])
def test_bytes_of(columns: int) -> None:
    x = torch.randn(3, columns)
    x[1, :32] = 0
    x[2, :32] = torch.arange(32) - 15.5  # halves, which go to even
    x[0, 5], x[1, 31] = 1e30, -1e30
    records = torch.zeros(3 * columns // 32, elementwise.RECORD, dtype=torch.uint8)
    launch(elementwise.quantize_rows, x, records, 64, x.numel(), chunks=-(-x.numel() // 64))
    assert_records(records, x)
