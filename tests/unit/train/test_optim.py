"""Optimizers: what decays, what Muon takes, and Lion's rule."""

import pytest
import torch
from torch import nn

from llamita.model.llama import LlamaForCausalLM
from llamita.train.optim import OPTIMIZERS, Lion, build, set_rate
from tests.unit.train.tiny import CONFIG


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_weight_is_trained_once_and_only_matrices_decay(name: str) -> None:
    model = LlamaForCausalLM(CONFIG)
    groups = [group for one in build(name, model, lr=0.1, weight_decay=0.5) for group in one.param_groups]
    trained = [weight for group in groups for weight in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
    assert all((group["weight_decay"] == 0.5) == (weight.ndim == 2) for group in groups for weight in group["params"])


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    model = LlamaForCausalLM(CONFIG)
    muon, adamw = build("muon", model, lr=0.1, weight_decay=0.0)
    taken = {id(weight) for group in muon.param_groups for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in taken}
    assert names == {name for name, weight in model.named_parameters() if "proj" in name}
    assert set_rate([muon, adamw], 0.5) == 0.05
    assert [group["lr"] for group in adamw.param_groups] == [0.0125, 0.0125]


def test_lion_moves_by_the_sign() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    lion = Lion([{"params": [weight], "weight_decay": 0.1}], lr=0.01)
    weight.grad = torch.tensor([5.0, -0.1, 0.0])
    lion.step()
    assert torch.allclose(weight, torch.tensor([1 * 0.999 - 0.01, -2 * 0.999 + 0.01, 3 * 0.999]))
    assert torch.allclose(lion.state[weight]["exp_avg"], torch.tensor([0.05, -0.001, 0.0]))
    weight.grad = torch.tensor([-0.001, 0.0, 0.0])  # less than the momentum, which decides
    lion.step()
    assert weight[0].item() == pytest.approx((1 * 0.999 - 0.01) * 0.999 - 0.01)
