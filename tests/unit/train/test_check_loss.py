"""--check-loss: finds nothing in a right step, every wrong normalization, and leaves the run as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from llamita.errors import LlamitaError, UsageError
from llamita.train import check_loss as checks
from llamita.train import state
from llamita.train.check_loss import check_loss
from llamita.train.draft import MANIFEST
from llamita.train.loop import train
from llamita.train.recipe import Recipe
from tests.unit.train.tiny import RECIPE, make_rows, make_run


def test_a_right_step_differs_by_rounding_alone() -> None:
    found = check_loss(make_run(make_rows()), RECIPE)
    assert found.difference < 1e-6
    assert found.gradient_difference < 1e-6 < found.largest_gradient
    assert "in micro-batches and as one batch: the loss " in str(found)


def test_the_run_stays_as_it_was(tmp_path: Path) -> None:
    manifests = []
    for name, is_checked in (("plain", False), ("checked", True)):
        run = make_run(make_rows())
        torch.manual_seed(RECIPE.seed)
        if is_checked:
            check_loss(run, RECIPE)
        assert run.model.training
        list(train(run, RECIPE, held_out=[], should_stop=lambda run=run: run.step >= 2))
        manifests.append((state.save(run, tmp_path / name) / MANIFEST).read_bytes())
    assert manifests[0] == manifests[1]


def test_the_run_stays_as_it_was_where_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(make_rows())
    position, backward = run.loader.position, checks.backward

    def fail(*args: Any) -> float:
        backward(*args)
        raise MemoryError

    monkeypatch.setattr(checks, "backward", fail)
    with pytest.raises(MemoryError):
        check_loss(run, RECIPE)
    assert run.model.training and run.loader.position == position
    assert all(weight.grad is None for weight in run.model.parameters())


@pytest.mark.parametrize("wrong", ["each micro-batch by its own count", "by the number of micro-batches"])
def test_a_wrong_normalization_is_found(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    def backward(run, task, batch, recipe, gradients) -> float:  # type: ignore[no-untyped-def]
        parts, total = batch.split(recipe.micro_rows), 0.0
        for part in parts:
            count = len(parts) * task.count(part) if wrong.startswith("each") else len(parts)
            loss = task.loss(run.model, part) / count
            loss.backward()
            total += loss.item()
        return total

    monkeypatch.setattr(checks, "backward", backward)
    with pytest.raises(LlamitaError, match=r"differs by .* which fp32 does not explain"):
        check_loss(make_run(make_rows()), RECIPE)


def test_bf16_has_bounds_of_its_own() -> None:
    found = check_loss(make_run(make_rows()), replace(RECIPE, precision="bf16"))
    assert found.difference < 0.05


def test_gradients_that_are_dropped_cannot_be_checked() -> None:
    recipe = Recipe(**{**recipe_values(), "optimizer_step": "in-backward", "micro_rows": RECIPE.rows, "clip": 0.0})
    with pytest.raises(UsageError, match="--check-loss needs the gradients"):
        check_loss(make_run(make_rows()), recipe)


def test_stages_cannot_be_checked() -> None:
    run = make_run(make_rows())
    run.pipeline = cast("Any", object())
    with pytest.raises(UsageError, match="--pp cuts it in stages: leave one out"):
        check_loss(run, RECIPE)


def recipe_values() -> dict[str, object]:
    return {name: getattr(RECIPE, name) for name in ("task", "steps", "length", "batch_tokens", "precision")}
