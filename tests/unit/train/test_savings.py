"""Every saving of memory trains as the plain run does: to the bit, or to what its dtype allows."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llamita.errors import NotFiniteError, UsageError
from llamita.model import plan
from llamita.plans import offload
from llamita.train import savings, state
from llamita.train.loop import train
from llamita.train.master_weights import MasterWeights
from llamita.train.recipe import Recipe
from llamita.train.recipe_file import make_recipe
from llamita.train.run import Run
from tests.unit.train.tiny import CONFIG, RECIPE, make_rows, make_run

BASE = replace(RECIPE, optimizer="adamw", steps=4, clip=0.0, micro_rows=4)


def saving_run(recipe: Recipe) -> Run:
    """A run of the recipe, prepared as a session prepares it."""
    run = make_run(make_rows(), recipe, CONFIG)
    savings.prepare(run.model, recipe)
    run.optimizers = savings.optimizers(run.model, recipe)
    return run


def taken(run: Run, recipe: Recipe) -> list[tuple[float, float]]:
    """Loss and norm of every step."""
    return [(line.loss, line.grad_norm) for line in train(run, recipe, held_out=[], should_stop=lambda: False)]


def same_weights(one: Run, other: Run) -> bool:
    return all(torch.equal(weight, other.weights()[name]) for name, weight in one.weights().items())


@pytest.mark.parametrize("change", [
    {"recompute": "full"}, {"recompute": "full", "recompute_every": 2}, {"recompute": "selective"},
    {"optimizer_step": "in-backward"}, {"optimizer_step": "in-backward", "optimizer": "muon"},
    {"recompute": "full", "optimizer_step": "in-backward", "optimizer": "lion"},
], ids=str)  # fmt: skip
def test_trains_to_the_bit_as_without_it(change: dict[str, Any]) -> None:
    recipe = replace(BASE, **change)
    plain = replace(BASE, optimizer=recipe.optimizer)
    with_it, without = saving_run(recipe), saving_run(plain)
    found, wanted = taken(with_it, recipe), taken(without, plain)
    assert [loss for loss, _ in found] == [loss for loss, _ in wanted]
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in wanted], rel=1e-5)
    assert same_weights(with_it, without)


def test_plain_layers_are_recomputed_selectively_to_the_bit() -> None:
    """As adapters have them: the written-out layers keep products alone by themselves."""
    found = []
    for policy in ("none", "selective"):
        run = make_run(make_rows(), BASE, CONFIG)
        if policy != "none":
            savings.recompute.enable(run.model, list(run.model.model.layers), policy=policy)
        assert plan.active(run.model) == (() if policy == "none" else ("recompute",))
        found.append((taken(run, BASE), run))
    assert found[0][0] == found[1][0]
    assert same_weights(found[0][1], found[1][1])


def test_offloaded_activations_train_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    move = offload.moved
    monkeypatch.setattr(offload, "SMALLEST", 2)
    monkeypatch.setattr(offload, "moved", lambda *to: (moves.append(to[0].numel()), move(*to))[1])
    run, twin = saving_run(BASE), saving_run(BASE)
    offload.enable(run.model, list(run.model.model.layers))
    assert plan.active(run.model) == ("training", "offload")
    assert taken(run, BASE) == taken(twin, BASE)
    assert same_weights(run, twin)
    weights = {weight.numel() for weight in run.model.parameters()}
    assert len(moves) > 4 * 2 * 2 * 5 and not weights - {16} & set(moves)  # there and back; weights stay


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bf16_weights_are_their_masters_rounded(optimizer: str) -> None:
    recipe = replace(BASE, weights="bf16", optimizer=optimizer, lr=1e-3)
    run, plain = saving_run(recipe), saving_run(replace(recipe, weights="fp32"))
    found, wanted = taken(run, recipe), taken(plain, replace(recipe, weights="fp32"))
    assert {weight.dtype for weight in run.weights().values()} == {torch.bfloat16}
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], rel=1e-2)
    for one in run.optimizers:
        assert isinstance(one, MasterWeights)
        for weight, master in zip(one.weights, one.masters, strict=True):
            assert master.dtype == torch.float32
            assert torch.equal(weight, master.to(torch.bfloat16)) and not torch.equal(weight.float(), master)


def test_masters_on_the_same_weights_train_to_the_bit() -> None:
    """What an optimizer on the CPU does: fp32 copies of fp32 weights."""
    run, plain = saving_run(BASE), saving_run(BASE)
    run.optimizers = savings.with_masters(
        run.model, lambda of: savings.optim.build("adamw", of, lr=BASE.rate, weight_decay=0.0), device=run.device
    )
    assert taken(run, BASE) == taken(plain, BASE)
    assert same_weights(run, plain)


def test_a_run_of_bf16_weights_resumes_exactly(tmp_path: Any) -> None:
    recipe = replace(BASE, weights="bf16", steps=6)
    whole, first = saving_run(recipe), saving_run(recipe)
    wanted = taken(whole, recipe)
    for _ in train(first, recipe, held_out=[], should_stop=lambda: first.step == 3):
        pass
    state.save(first, tmp_path)
    resumed = saving_run(recipe)
    state.restore(resumed, tmp_path)
    assert taken(resumed, recipe) == wanted[3:]
    assert same_weights(resumed, whole)
    own, others = (run.memory() for run in (resumed, whole))
    assert own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


def test_optimizer_in_backward_holds_one_gradient_at_a_time() -> None:
    recipe = replace(BASE, optimizer_step="in-backward")
    run, most = saving_run(recipe), []
    for optimizer in run.optimizers:
        step = optimizer.step
        optimizer.step = lambda step=step: (
            most.append(sum(w.grad is not None for w in run.model.parameters())),
            step(),
        )  # type: ignore[method-assign]
    taken(run, recipe)
    assert max(most) == 1 and most.count(1) == 4 * len(run.weights())
    with torch.no_grad():
        run.model.model.norm.weight[0] = float("nan")
    run.step = 3
    with pytest.raises(NotFiniteError, match=r"^a gradient of shape \(.*\) is not finite: resume"):
        taken(run, recipe)


@pytest.mark.parametrize(("change", "message"), [
    ({"optimizer_step": "in-backward"}, "clipping to a norm of 1.0 needs all of them: set clip to 0"),
    ({"optimizer_step": "in-backward", "clip": 0.0, "micro_rows": 2}, "micro-batches of 2 rows needs all of them"),
    ({"recompute": "full", "offload": "both"}, "recompute full leaves no activations to offload: give up one"),
    ({"recompute": "most"}, "recompute is 'most': use one of none, selective, full"),
    ({"weights": "fp8"}, "weights is 'fp8': use one of fp32, bf16"),
])  # fmt: skip
def test_savings_that_do_not_go_together_are_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        make_recipe({"batch_tokens": 64, "length": 16, **change})
    assert "\n" not in str(refusal.value)


def test_savings_that_do_not_fit_the_run_are_one_sentence() -> None:
    model = make_run(make_rows()).model
    with pytest.raises(UsageError, match=r"^offload moves to the CPU's memory what is on a GPU"):
        savings.prepare(model, replace(BASE, offload="both"))
    with pytest.raises(UsageError, match=r"^weights bf16 is for one process, and 2 shard"):
        savings.prepare(model, replace(BASE, weights="bf16"), processes=2)
