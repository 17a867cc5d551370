"""Optimizers: what decays, what Muon takes, and Lion's rule."""

import pytest
import torch
from torch import nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.lora import add_lora
from llamita.model.llama import LlamaForCausalLM
from llamita.train.muon import Muon
from llamita.train.optim import OPTIMIZERS, Lion, build, keep_own, set_rate
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


@pytest.mark.parametrize(("target", "kinds"), [("q_proj", [Muon]), ("embed_tokens", [torch.optim.AdamW])])
def test_an_adapter_may_have_matrices_of_layers_alone_or_none(target: str, kinds: list[type]) -> None:
    model = LlamaForCausalLM(CONFIG)
    add_lora(model, LoraConfig(target_modules=[target]))
    assert [type(one) for one in build("muon", model, lr=0.1, weight_decay=0.0)] == kinds


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stage_has_the_groups_of_the_whole_model_and_the_numbers_of_its_weights(name: str) -> None:
    model = LlamaForCausalLM(CONFIG)
    names = {id(weight): name for name, weight in model.named_parameters()}
    optimizers, whole = ([*build(name, model, lr=0.1, weight_decay=0.1)] for _ in range(2))
    own = {name: nn.Parameter(torch.ones_like(w)) for name, w in model.named_parameters() if ".layers.1." in name}
    numbers = keep_own(optimizers, names, own)
    for optimizer, other, indices in zip(optimizers, whole, numbers, strict=True):
        kept = [weight for group in optimizer.param_groups for weight in group["params"]]
        every = [names[id(weight)] for group in other.param_groups for weight in group["params"]]
        assert all(own[every[index]] is weight for index, weight in zip(indices, kept, strict=True))
        assert len(optimizer.param_groups) == len(other.param_groups)
        for weight in kept:
            weight.grad = torch.ones_like(weight)
        optimizer.step()  # groups without weights are no error
    assert sum(map(len, numbers)) == len(own)
    assert all(not torch.equal(weight, torch.ones_like(weight)) for weight in own.values())


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


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_exact_steps_do_not_depend_on_the_shard(name: str) -> None:
    """Shards of 3, 8 and 17 numbers: less than a vector, one, and some that are left."""

    def moved(size: int) -> torch.Tensor:
        torch.manual_seed(2)
        weights, model = torch.randn(67).split(size), nn.Module()
        model.parts = nn.ParameterList([nn.Parameter(part.clone()) for part in weights])
        (optimizer,) = build(name, model, lr=0.01, weight_decay=0.1, is_exact=True)
        for _ in range(4):
            for part, gradient in zip(model.parts, torch.randn(67).split(size), strict=True):
                part.grad = gradient.clone()
            optimizer.step()
        return torch.cat([part.detach() for part in model.parts])

    assert all(torch.equal(moved(67), moved(size)) for size in (3, 8, 17))
