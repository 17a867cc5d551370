"""What lies between the products of a training step equals autograd's fp64, rounded once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.kernels.cpu import training
from llamita.model.loss import IGNORED

HALF = 2**-8  # a unit in the last place of bf16


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (35, 96)])
def test_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    x, scale = torch.randn(rows, width).to(dtype) * 3, torch.randn(width)
    wide, own = x.double().requires_grad_(), scale.double().requires_grad_()
    wanted = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-3) * own
    found, rstd = training.norm(x, scale, 1e-3)
    assert torch.allclose(found.double(), wanted, rtol=HALF, atol=0)
    d_out = torch.randn(rows, width)
    d_x, d_scale = training.norm_gradients(x, scale, rstd, d_out)
    expected = torch.autograd.grad(wanted, (wide, own), d_out.double())
    assert d_x.dtype == dtype
    assert distance(d_x, expected[0]) < (1e-6 if dtype == torch.float32 else HALF)
    assert distance(d_scale, expected[1]) < 1e-6


@pytest.mark.parametrize("size", [(1, 16), (3, 7200)])
def test_gate(size: tuple[int, int]) -> None:
    gate, up, d_out = (torch.randn(size).bfloat16() * 4 for _ in range(3))
    leaves = [x.double().requires_grad_() for x in (gate, up)]
    wanted = F.silu(leaves[0]) * leaves[1]
    assert torch.allclose(training.gate(gate, up).double(), wanted, rtol=HALF, atol=0)
    product, *gradients = training.gate_gradients(gate, up, d_out)
    assert torch.equal(product, training.gate(gate, up))
    expected = torch.autograd.grad(wanted, leaves, d_out.double())
    for one, own in zip(gradients, expected, strict=True):
        assert torch.allclose(one.double(), own, rtol=HALF, atol=1e-6)


@pytest.mark.parametrize("width", [32, 96])
def test_rotate(width: int) -> None:
    x, cosines, sines = torch.randn(5, 3, width).bfloat16(), torch.randn(5, width), torch.randn(5, width)
    leaf = x.double().requires_grad_()
    half = torch.cat((-leaf[..., width // 2 :], leaf[..., : width // 2]), -1)
    wanted = leaf * cosines[:, None].double() + half * sines[:, None].double()
    assert torch.allclose(training.rotated(x, cosines, sines).double(), wanted, rtol=HALF, atol=1e-6)
    cosines, sines = (torch.cat((one[:, : width // 2],) * 2, -1) for one in (cosines, sines))  # as positions have them
    half = torch.cat((-leaf[..., width // 2 :], leaf[..., : width // 2]), -1)
    (expected,) = torch.autograd.grad(leaf * cosines[:, None] + half * sines[:, None], leaf, x.double())
    assert torch.allclose(training.rotated(x, cosines, sines, -1.0).double(), expected, rtol=HALF, atol=1e-6)


@pytest.mark.parametrize("width", [16, 144])
def test_loss(width: int) -> None:
    logits, targets = torch.randn(6, width).bfloat16() * 5, torch.randint(width, (6,))
    targets[4] = IGNORED
    leaf = logits.double().requires_grad_()
    wanted = F.cross_entropy(leaf, targets, reduction="none", ignore_index=IGNORED)
    (expected,) = torch.autograd.grad(wanted.sum(), leaf)
    losses, totals = training.softmax_gradient(logits, targets)
    is_learned = targets != IGNORED
    assert torch.allclose(losses[is_learned].double(), wanted[is_learned], rtol=1e-6, atol=1e-6)
    gradient = logits.double() * (is_learned / totals)[:, None]
    assert torch.allclose(gradient, expected, rtol=HALF, atol=1e-7)
