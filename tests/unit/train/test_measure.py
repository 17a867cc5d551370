"""Trial steps decide what a recipe leaves open, and change nothing."""

from dataclasses import replace

import torch

from llamita.train.measure import Deadline, resolved
from tests.unit.train.tiny import RECIPE, make_rows, make_run


def test_precision_and_steps_are_decided_and_the_model_stays() -> None:
    rows = make_rows()
    model = make_run(rows).model
    before, state = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    recipe = resolved(replace(RECIPE, precision="auto", steps=None, minutes=0.01), model, rows)
    assert recipe.precision in ("fp32", "bf16")
    assert recipe.steps is not None and recipe.steps >= 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_decided_is_not_measured() -> None:
    assert resolved(RECIPE, None, None) is RECIPE  # type: ignore[arg-type]


def test_a_run_that_is_too_slow_gets_fewer_steps_but_one_more_at_least() -> None:
    assert Deadline(10).fitting(1, 1000, seconds=0.1) == 1000
    assert 50 < Deadline(10).fitting(1, 1000, seconds=10.0) <= 61
    assert Deadline(0).fitting(7, 1000, seconds=1.0) == 8
    assert Deadline(10).fitting(1, 63, seconds=10.0) == 63  # a little too slow
