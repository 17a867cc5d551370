"""The training loop: the only one, for every task."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import torch

from llamita.data.loader import Batch
from llamita.errors import NotFiniteError
from llamita.train import optim
from llamita.train.metrics import Metrics
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.schedule import share
from llamita.train.tasks import TASKS, Task


def train(run: Run, recipe: Recipe, *, held_out: list[Batch], should_stop: Callable[[], bool]) -> Iterator[Metrics]:
    """Take the steps that are left, one metrics line each; `should_stop` is asked before every step.

    recipe: with its task and precision resolved. held_out: batches to measure on, every `evaluate_every` steps.
    Raises NotFiniteError where loss or gradient is; the weights are then still those of the step before.
    """
    task, weights = TASKS[recipe.task], list(run.model.parameters())
    while run.step < run.steps and not should_stop():
        started = perf_counter()
        done = share(recipe.schedule, run.step, steps=run.steps, warmup=recipe.warmup)
        rate = optim.set_rate(run.optimizers, done)
        batch = run.loader.next(recipe.rows)
        loss = backward(run, task, batch, recipe)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, recipe.clip))
        check_finite(run.step + 1, loss, norm)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step, run.tokens = run.step + 1, run.tokens + batch.learned
        seconds = perf_counter() - started
        is_measured = held_out and (run.step % recipe.evaluate_every == 0 or run.step == run.steps)
        measured = evaluate(run, task, held_out, recipe.precision) if is_measured else None
        yield Metrics(run.step, loss, rate, norm, run.tokens, batch.inputs.numel(), seconds, measured)


def backward(run: Run, task: Task, batch: Batch, recipe: Recipe) -> float:
    """Add the gradient of a batch's mean loss, computed in parts; returns that loss.

    Every part's sum is divided by the learned tokens of the whole batch, so that each token counts the same.
    """
    learned, total = max(batch.learned, 1), 0.0
    for part in batch.split(recipe.micro_rows):
        with autocast(recipe.precision, run.device):
            loss = task.loss(run.model, part.to(run.device)) / learned
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def evaluate(run: Run, task: Task, batches: list[Batch], precision: str) -> float:
    """The mean loss of all learned tokens of some batches, without dropout."""
    run.model.eval()
    with autocast(precision, run.device):
        total = sum(task.loss(run.model, batch.to(run.device)).item() for batch in batches)
    run.model.train()
    return total / max(1, sum(batch.learned for batch in batches))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bf16 on fp32 weights, or everything in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raise NotFiniteError where a step must not be taken."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NotFiniteError(
            f"step {step} has a loss of {loss} and a gradient of norm {norm}: resume from before it with a lower --lr"
        )
