"""Functions of numbers: near to the true ones, and the bits of their references."""

import math

import pytest
import torch

from llamita.kernels import reference
from llamita.kernels.cpu import functions, rotary
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Angles
from llamita.kernels.cpu.runtime.program import kernel
from tests.unit.kernels.cpu.launch import call, launch


@kernel
def exponentials(at: int, chunk: int) -> None:
    """Sixteen of them."""
    x, out = v.read(at) + 64 * chunk, v.read(at + 8) + 64 * chunk
    v.store(out, functions.exponential(v.load(x)))


@kernel
def sines_and_cosines(at: int, chunk: int) -> None:
    """Of fp32 angles, rounded to fp32."""
    sine, cosine = functions.sine_and_cosine(float(v.read_fp32(v.read(at) + 4 * chunk)))
    v.write_fp32(v.read(at + 8) + 4 * chunk, sine)
    v.write_fp32(v.read(at + 16) + 4 * chunk, cosine)


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
    torch.testing.assert_close(out[3:8], x[3:8].exp(), rtol=1e-6, atol=1.2e-38)  # denormals are 0
    torch.testing.assert_close(out[8:12], torch.full((4,), math.exp(88.0)), rtol=1e-6, atol=0)


def test_exponential_has_the_bits_of_its_reference() -> None:
    x = torch.cat((torch.randn(4000) * 30, torch.linspace(-86, 88, 4000)))
    out = torch.empty_like(x)
    launch(exponentials, x, out, chunks=len(x) // 16)
    assert torch.equal(out, reference.exponential(x))


def test_sine_and_cosine_are_rounded_right() -> None:
    """In fp64 they are near enough that fp32 of them is fp32 of the true ones, but for one in ten million."""
    x = torch.cat((torch.linspace(-7, 7, 20_001), torch.rand(20_000) * 131_072, torch.tensor([0.0, 1e6 - 1])))
    sines, cosines = torch.empty(2, len(x))
    launch(sines_and_cosines, x, sines, cosines, chunks=len(x))
    for out, name in ((sines, "sin"), (cosines, "cos")):
        expected = torch.tensor([getattr(math, name)(angle) for angle in x.tolist()], dtype=torch.float64).float()
        assert int((out != expected).sum()) <= 2
        torch.testing.assert_close(out, expected, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("half", [1, 8, 16, 35])
def test_angles_of_positions(half: int) -> None:
    positions, frequencies = torch.tensor([0, 1, 77, 131_071]), 10_000 ** -(torch.arange(half) / half)
    cosines, sines = torch.empty(4, half), torch.empty(4, half)
    call(rotary.angles, Angles(positions, frequencies, cosines, sines, half, 1.25), chunks=4)
    for out, expected in zip((cosines, sines), reference.angles(positions, frequencies, 1.25), strict=True):
        assert torch.equal(out, expected)
