"""Trial steps decide what a recipe leaves open, and change nothing."""

from dataclasses import replace

import pytest
import torch

from llamita.train import measure
from llamita.train.measure import Deadline, resolved
from tests.unit.train.tiny import RECIPE, make_rows, make_run


def test_precision_and_steps_are_decided_and_the_model_stays() -> None:
    run, recipe = make_run(make_rows()), replace(RECIPE, precision="auto", steps=None, minutes=0.01)
    before, state = [weight.clone() for weight in run.model.parameters()], torch.get_rng_state()
    recipe = resolved(recipe, run)
    assert recipe.precision in ("fp32", "bf16")
    assert recipe.steps is not None and recipe.steps >= 1
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.memory().keys() == {"rng"}  # no optimizer has a state yet
    assert torch.equal(torch.get_rng_state(), state)
    assert run.loader.position == 0


def test_what_is_decided_is_not_measured() -> None:
    decided = replace(RECIPE, threads=1)
    assert resolved(decided, make_run(make_rows())) == decided


def test_the_threads_of_the_fastest_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {(1, "fp32"): 0.5, (2, "fp32"): 0.9, (1, "bf16"): 0.25}
    monkeypatch.setattr(measure, "_seconds", lambda recipe, run: seconds[recipe.threads, recipe.precision])
    torch.set_num_threads(2)
    recipe = resolved(replace(RECIPE, precision="auto", steps=None, minutes=1), make_run(make_rows()))
    assert (recipe.threads, recipe.precision, recipe.steps) == (1, "bf16", 240)
    assert torch.get_num_threads() == 1


def test_a_run_that_is_too_slow_gets_fewer_steps_but_one_more_at_least() -> None:
    now = 0.0
    deadline = Deadline(1, 100, clock=lambda: now)
    now = 0.6
    assert deadline.fitting(1) == 100  # as measured
    now = 6.0
    assert deadline.fitting(2) == 20  # 3 seconds a step: 18 more in what is left
    now = 6.3
    assert deadline.fitting(3) == 28  # it is faster again
    now = 70.0
    assert deadline.fitting(4) == 5
