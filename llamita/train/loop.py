"""The training loop: the only one, for every task."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from time import perf_counter

import torch

from llamita.data.loader import Batch
from llamita.errors import NotFiniteError
from llamita.parallel import mesh
from llamita.parallel.gradients import Gradients, TreeGradients
from llamita.parallel.pipeline import StageGradients
from llamita.parallel.shard import reshard, whole
from llamita.train import optim
from llamita.train.metrics import Metrics
from llamita.train.optimizer_in_backward import GradientsInBackward
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.schedule import share
from llamita.train.tasks import Task


def train(run: Run, recipe: Recipe, *, held_out: list[Batch], should_stop: Callable[[], bool]) -> Iterator[Metrics]:
    """Take the steps that are left, one metrics line each; `should_stop` is asked before every step.

    recipe: with its task and precision resolved. held_out: batches to measure on, every `evaluate_every` steps.
    Raises NotFiniteError where loss or gradient is; the weights are then still those of the step before.
    """
    task, gradients = run.task or recipe.training_task(), gradients_of(run, recipe)
    while run.step < run.steps and not mesh.on_any(should_stop()):
        started = perf_counter()
        done = share(recipe.schedule, run.step, steps=run.steps, warmup=recipe.warmup)
        rate = optim.set_rate(run.optimizers, done)
        batch = next_batch(run, task, recipe)
        loss = backward(run, task, batch, recipe, gradients)
        norm = gradients.clip(recipe.clip or math.inf)
        check_finite(run.step + 1, loss, norm)
        optim.step(run.optimizers)
        run.step, run.tokens = run.step + 1, run.tokens + batch.learned
        seconds = perf_counter() - started
        is_measured = held_out and (run.step % recipe.evaluate_every == 0 or run.step == run.steps)
        measured, figures = evaluate(run, task, held_out, recipe.precision) if is_measured else (None, None)
        measured = None if task.samples else measured
        figures = {**task.step_figures(), **(figures or {})}
        yield Metrics(run.step, loss, rate, norm, run.tokens, batch.inputs.numel(), seconds, measured, figures or None)


def next_batch(run: Run, task: Task, recipe: Recipe) -> Batch:
    """The global batch of the next step, with all that the task has to know before its first pass."""
    batch = run.loader.next(recipe.rows)
    if task.prepare is not None:
        batch = task.prepare(run.loss, batch, recipe.micro_rows)
        reshard(run.root)
    return batch


def gradients_of(run: Run, recipe: Recipe) -> Gradients:
    """How the gradients of a run's micro-batches are added."""
    if recipe.optimizer_step == "in-backward":
        return GradientsInBackward(list(run.model.parameters()), run.optimizers)
    weights = list(run.model.parameters())
    if run.pipeline is not None:
        return StageGradients(weights, run.pipeline)
    return (TreeGradients if recipe.exact_scaling else Gradients)(weights)


def backward(run: Run, task: Task, batch: Batch, recipe: Recipe, gradients: Gradients) -> float:
    """Add the gradient of a global batch's mean loss, computed in parts; returns that loss.

    Every part's sum is divided by the count of the whole batch, on all ranks, so that each token, or pair, counts the
    same. What is random in a part depends on the seed, the step and the part's number alone.
    """
    count = max(task.count(batch), 1)
    parts = [part.to(run.device) for part in run.ranks.share(batch, recipe.micro_rows)]

    def around(turn: int) -> AbstractContextManager[object]:
        torch.manual_seed(part_seed(recipe.seed, run.step, run.ranks.number(turn)))
        return autocast(recipe.precision, run.device)

    losses = gradients.accumulate(run.root, lambda model, part: task.loss(model, part) / count, parts, around)
    gradients.finish()
    torch.manual_seed(part_seed(recipe.seed, run.step, -1))  # every rank leaves the step in the same state
    return sum(run.ranks.in_order(losses))


def part_seed(seed: int, step: int, part: int) -> int:
    """The seed of a part's dropout: the same on whichever rank the part is, and after a resume."""
    return int.from_bytes(blake2b(f"{seed}:{step}:{part}".encode(), digest_size=7).digest())


@torch.no_grad()
def evaluate(run: Run, task: Task, batches: list[Batch], precision: str) -> tuple[float, dict[str, float]]:
    """The mean loss of some batches, and the task's figures of them, without dropout; each rank has its share."""
    turns = -(-len(batches) // run.ranks.size)
    numbers = [run.ranks.number(turn) for turn in range(turns)]
    count = max(1, sum(task.count(batch) for batch in batches))
    with run.without_dropout(), autocast(precision, run.device):
        parts = [whole(run.loss(task.measured, batches[min(number, len(batches) - 1)])) for number in numbers]
    own = torch.stack(parts, 1).double().tolist()  # a list for each name
    # The last turn may have ranks with nothing of their own to do.
    totals = [sum(run.ranks.in_order(values)[: len(batches)]) for values in own]
    loss, *figures = [total / count for total in totals]
    return loss, dict(zip(task.figure_names, figures, strict=True))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bf16 on fp32 weights, or everything in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raise NotFiniteError where a step must not be taken."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NotFiniteError(
            f"step {step} has a loss of {loss} and a gradient of norm {norm}: resume from before it with a lower --lr"
        )
