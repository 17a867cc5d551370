"""Learning rates by the names of weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from llamita.errors import UsageError
from llamita.train import optim
from llamita.train.rates import OF_ADAMW, parsed_rates, set_shares
from llamita.train.recipe_file import make_recipe


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 3)})])


def rates(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, float]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {names[id(weight)]: group["lr"] for group in groups for weight in group["params"]}


def test_a_rate_is_that_of_the_first_glob_and_follows_the_schedule() -> None:
    model = nn.ModuleDict({"model": Tiny()})
    optimizers = optim.build("muon", model, lr=0.1, weight_decay=0.0)
    usual = rates(model, optimizers)
    set_shares(optimizers, model, parsed_rates("*.q.weight=0.5, *.q.*=0.2,*.embed.*=0.3"), lr=0.1)
    changed = {"model.layers.0.q.weight": 0.05, "model.layers.0.q.bias": 0.02, "model.embed.weight": 0.03}
    assert rates(model, optimizers) == pytest.approx(usual | changed)
    assert optim.set_rate(optimizers, 0.5) == pytest.approx(0.05)  # of the fastest
    assert rates(model, optimizers) == pytest.approx({name: rate / 2 for name, rate in (usual | changed).items()})


def test_a_weight_moves_by_its_own_rate() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    optimizers = optim.build("lion", model, lr=0.25, weight_decay=0.0)
    set_shares(optimizers, model, parsed_rates("b.*=0.5"), lr=0.25)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizers[0].step()
    moved = {name: (before[name] - weight).abs().max().item() for name, weight in model.named_parameters()}
    assert moved == pytest.approx({"a.weight": 0.25, "b.weight": 0.125})


def test_no_shares_change_nothing() -> None:
    model = nn.ModuleDict({"model": Tiny()})
    optimizers = optim.build("muon", model, lr=0.1, weight_decay=0.0)
    usual = rates(model, optimizers)
    set_shares(optimizers, model, parsed_rates(""), lr=0.1)
    assert rates(model, optimizers) == usual


@pytest.mark.parametrize("text", ["q", "=0.5", "q=fast", "q=-1", "q=nan", "a=1,b"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a glob of names and a share"):
        parsed_rates(text)


def test_a_glob_that_fits_no_weight_is_refused() -> None:
    model = nn.ModuleDict({"model": Tiny()})
    with pytest.raises(UsageError, match="'k_proj', which no trained weight is named: "):
        set_shares(optim.build("adamw", model, lr=0.1, weight_decay=0.0), model, parsed_rates("k_proj=1"), lr=0.1)
    first, frozen = next(iter(model.named_parameters()))
    frozen.requires_grad_(False)
    with pytest.raises(UsageError, match="which no trained weight is named"):  # as an adapter's base
        set_shares(optim.build("adamw", model, lr=0.1, weight_decay=0.0), model, parsed_rates(f"{first}=1"), lr=0.1)


def test_a_trained_model_takes_smaller_steps_the_larger_it_is() -> None:
    recipe = make_recipe({"model": "some", "method": "lora", "optimizer": "adamw"}, source="here")

    assert recipe.with_rate(2048).rate == 5e-4
    assert recipe.with_rate(256).rate == 2.5e-3
    assert replace(recipe, method="full").with_rate(4096).rate == pytest.approx(2.9e-5)
    assert replace(recipe, task="dpo").with_rate(2048).rate == 5e-5


@pytest.mark.parametrize(
    ("optimizer", "full", "lora"),
    [("adamw8bit", 5e-5, 5e-4), ("muon", 6.5e-4, 6.5e-3), ("lion", 1.7e-5, 1.7e-4), ("adafactor", 2.5e-4, 2.5e-2)],
)
def test_other_optimizers_take_multiples_of_adamw_s_rate(optimizer: str, full: float, lora: float) -> None:
    recipe = make_recipe({"model": "some", "optimizer": optimizer}, source="here")

    found = [replace(recipe, method=method).with_rate(2048).rate for method in ("full", "lora")]
    assert found == pytest.approx([full, lora], rel=0.05)
    assert OF_ADAMW.keys() == optim.OPTIMIZERS.keys()


@pytest.mark.parametrize("change", [{"model": None}, {"lr": 1e-2}])
def test_a_new_model_and_a_given_rate_keep_theirs(change: dict[str, Any]) -> None:
    recipe = replace(make_recipe({"model": "some", "optimizer": "adamw"}, source="here"), **change)

    assert recipe.with_rate(4096) is recipe
