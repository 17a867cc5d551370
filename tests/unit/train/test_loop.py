"""The loop equals a plain one of PyTorch, and does not care how a step is cut into passes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from llamita.data.documents import IGNORED
from llamita.errors import NotFiniteError
from llamita.train.loop import evaluate, train
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.schedule import share
from tests.unit.train.tiny import CONFIG, RECIPE, make_rows, make_run

PLAIN = replace(RECIPE, optimizer="adamw", lr=3e-3, steps=20, weight_decay=0.1, micro_rows=4)
NO_DROPOUT = CONFIG.replace(attention_dropout=0.0)


def losses(run: Run, recipe: Recipe) -> list[float]:
    return [line.loss for line in train(run, recipe, held_out=[], should_stop=lambda: False)]


def reference_losses(run: Run, recipe: Recipe) -> list[float]:
    """The same steps written out: one pass a row document by document, torch's AdamW, clipping, the schedule."""
    model, steps = run.model, recipe.steps or 0
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    plain = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * share(recipe.schedule, step, steps=steps, warmup=recipe.warmup)
        batch = run.loader.next(recipe.rows)
        total = torch.zeros(())
        for row in range(recipe.rows):
            starts = [*(batch.positions[row] == 0).nonzero().flatten().tolist(), recipe.length]
            for first, stop in pairwise(starts):
                logits = model(batch.inputs[row : row + 1, first:stop], use_cache=False).logits[0]
                targets = batch.targets[row, first:stop]
                total = total + F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        loss = total / (batch.targets != IGNORED).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        found.append(loss.item())
    return found


def test_twenty_steps_equal_a_plain_loop_s() -> None:
    rows = make_rows()
    ours = losses(make_run(rows, PLAIN, NO_DROPOUT), PLAIN)
    plain = reference_losses(make_run(rows, PLAIN, NO_DROPOUT), PLAIN)
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 1e-6
    assert ours[-1] < ours[0] - 0.05


def test_a_step_is_the_same_however_it_is_cut() -> None:
    """1 x 4 = 2 x 2 = 4 x 1 rows in fp64, though the parts learn different numbers of tokens."""
    weights = []
    for micro_rows in (4, 2, 1):
        recipe = replace(PLAIN, micro_rows=micro_rows, steps=5)
        run = make_run(make_rows(), recipe, NO_DROPOUT)
        run.model.double()
        losses(run, recipe)
        weights.append(torch.cat([weight.detach().flatten() for weight in run.model.parameters()]))
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-12)
    assert torch.allclose(weights[0], weights[2], rtol=0, atol=1e-12)


def test_not_finite_stops_before_the_weights_change() -> None:
    run = make_run(make_rows())
    with torch.no_grad():
        run.model.model.norm.weight[0] = float("nan")
    before = {name: weight.clone() for name, weight in run.weights().items()}
    with pytest.raises(NotFiniteError, match=r"step 1 has a loss of nan .* resume from before it with a lower --lr"):
        losses(run, RECIPE)
    assert all(
        torch.equal(weight, run.weights()[name]) for name, weight in before.items() if name != "model.norm.weight"
    )
    assert run.step == 0


def test_held_out_rows_are_measured_without_dropout_and_leave_no_trace() -> None:
    recipe = replace(RECIPE, evaluate_every=4)
    run, twin = make_run(make_rows()), make_run(make_rows())
    held_out = make_run(make_rows()).loader.next(3).split(2)
    torch.manual_seed(5)
    lines = list(train(run, recipe, held_out=held_out, should_stop=lambda: False))
    assert [line.step for line in lines if line.held_out_loss is not None] == [4, 6]
    assert lines[-1].held_out_loss == evaluate(run, recipe.training_task(), held_out, "fp32")[0]
    torch.manual_seed(5)
    assert losses(twin, recipe) == [line.loss for line in lines]


def test_stops_when_asked() -> None:
    run = make_run(make_rows())
    assert len(list(train(run, RECIPE, held_out=[], should_stop=lambda: run.step == 3))) == 3
