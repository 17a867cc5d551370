"""AdamW with 8-bit states: torchao's codes where it is installed, AdamW's steps nearly, and an exact resume."""

import pytest
import torch
from torch import Tensor, nn

from llamita.train import adam8bit
from llamita.train.adam8bit import BLOCK, VALUES, AdamW8bit, dequantized, quantized

BETAS = (0.9, 0.95)


def trained(optimizer: type[torch.optim.Optimizer], steps: int, size: tuple[int, int] = (80, 96)) -> tuple[Tensor, ...]:
    """A weight, and what its optimizer remembers, after some steps."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(size))
    one = optimizer([{"params": [weight], "weight_decay": 0.1}], lr=0.01, betas=BETAS)  # type: ignore[call-arg]
    for _ in range(steps):
        weight.grad = torch.randn(size)
        one.step()
    return weight.detach(), *one.state[weight].values()


@pytest.mark.parametrize("name", VALUES)
def test_each_number_gets_the_code_that_is_nearest(name: str) -> None:
    values = torch.tensor(VALUES[name])
    assert len(values) == 256 and values[-1] == 1
    torch.manual_seed(1)
    numbers = torch.randn(12 * BLOCK) * torch.logspace(-5, 1, 12 * BLOCK)
    numbers = numbers if name == "exp_avg" else numbers.abs()
    codes, scales = quantized(numbers, values)
    scaled = (numbers.view(-1, BLOCK) / numbers.view(-1, BLOCK).abs().amax(-1, keepdim=True)).view(-1, 1)
    nearest = (scaled - values).abs().amin(-1)
    assert torch.allclose((scaled[:, 0] - values[codes.int()]).abs(), nearest, atol=1e-7)
    assert torch.equal(quantized(dequantized(codes, scales, values), values)[0][numbers != 0], codes[numbers != 0])


def test_codes_and_scales_are_torchao_s() -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    from torchao.optim.adam import single_param_adam
    from torchao.optim.subclass_8bit import OptimState8bit

    weight, _, *own = trained(AdamW8bit, 5)
    torch.manual_seed(0)
    other, steps = torch.randn(80, 96), torch.tensor(0.0)
    states = [OptimState8bit.zeros((80, 96), signed) for signed in (True, False)]
    for _ in range(5):
        steps += 1
        single_param_adam(
            other, torch.randn(80, 96), steps, *states, None, torch.tensor(0.01), *BETAS, 0.1, 1e-8, True, False
        )
    assert all(torch.equal(a, b) for a, b in zip(own, [t for s in states for t in (s.codes, s.scale)], strict=True))
    assert torch.allclose(weight, other, atol=1e-6)


def test_a_step_is_nearly_adamw_s_and_small_weights_step_exactly_so() -> None:
    start = trained(AdamW8bit, 0)[0]
    own, other = trained(AdamW8bit, 20)[0], trained(torch.optim.AdamW, 20)[0]
    assert (own - other).norm() < 0.03 * (other - start).norm()
    for size in ((40, 96), (79, 97)):  # too few numbers, and a block that is not full
        assert torch.allclose(trained(AdamW8bit, 20, size)[0], trained(torch.optim.AdamW, 20, size)[0], atol=1e-6)


def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(AdamW8bit, 3)
    monkeypatch.setattr(adam8bit, "CHUNK", 7 * BLOCK)
    assert all(torch.equal(a, b) for a, b in zip(whole, trained(AdamW8bit, 3), strict=True))


def test_a_loaded_state_goes_on_with_the_same_bits() -> None:
    def optimizer(weight: nn.Parameter) -> AdamW8bit:
        return AdamW8bit([weight], lr=0.01, betas=BETAS)

    torch.manual_seed(2)
    weights = [nn.Parameter(torch.randn(64, 64))]
    one = optimizer(weights[0])
    for step in range(4):
        if step == 2:
            weights.append(nn.Parameter(weights[0].detach().clone()))
            other = optimizer(weights[1])
            other.load_state_dict(one.state_dict())
        gradient = torch.randn(64, 64)
        for weight, each in zip(weights, (one, other) if step >= 2 else (one,), strict=True):
            weight.grad = gradient.clone()
            each.step()
    assert torch.equal(*weights)
    states = [each.state[weight] for weight, each in zip(weights, (one, other), strict=True)]
    assert states[0]["exp_avg.codes"].dtype == states[1]["exp_avg.codes"].dtype == torch.uint8
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
