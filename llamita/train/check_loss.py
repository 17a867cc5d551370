"""A check before training: an accumulated step has the loss and the gradients of the same rows as one batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.errors import LlamitaError, UsageError
from llamita.parallel import mesh
from llamita.parallel.shard import local, whole
from llamita.parallel.tensor import sharded_loss
from llamita.train.loop import autocast, backward, gradients_of, next_batch
from llamita.train.recipe import Recipe
from llamita.train.run import Run

# The largest relative difference that rounding explains, of the loss and of the gradients, by the precision.
BOUNDS: Mapping[str, tuple[float, float]] = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 1e-1)}


@dataclass(frozen=True, slots=True)
class LossCheck:
    """The loss of a step, computed in micro-batches, and the largest differences from that of one batch.

    largest_gradient: the largest absolute value of the gradients, which their difference is compared with.
    """

    loss: float
    difference: float
    gradient_difference: float
    largest_gradient: float

    def __str__(self) -> str:
        return (
            f"a step in micro-batches and as one batch: the loss {self.loss:.6g} differs by {self.difference:.2g}, the "
            f"gradients by at most {self.gradient_difference:.2g} (the largest is {self.largest_gradient:.2g})"
        )


def check_loss(run: Run, recipe: Recipe) -> LossCheck:
    """Compute the next step's gradients twice, without dropout: in micro-batches on all ranks, and as one batch.

    The run stays as it is. Raises LlamitaError where they differ by more than rounding explains (BOUNDS), and
    UsageError where gradients are not kept, and where the model is in stages.
    """
    if recipe.optimizer_step == "in-backward":
        raise UsageError("--check-loss needs the gradients, which --optimizer-step in-backward drops: leave one out")
    if run.pipeline is not None:
        raise UsageError("--check-loss computes a batch on the whole model, and --pp cuts it in stages: leave one out")
    task = run.task or recipe.training_task()
    with _unchanged(run), sharded_loss(run.model):
        batch = next_batch(run, task, recipe)
        loss = backward(run, task, batch, recipe, gradients_of(run, recipe))
        gradients = _taken(run)
        with autocast(recipe.precision, run.device):
            # Every rank has all rows here, of --cp its part of each, and FSDP adds their gradients.
            at_once = run.loss(task.loss, batch) / max(task.count(batch), 1)
        (at_once / run.ranks.size).backward()
        others = _taken(run)
    difference = abs(loss - run.ranks.in_order([whole(at_once).item()])[0])
    gap = mesh.largest(_largest(a - b for a, b in zip(gradients, others, strict=True)))
    found = LossCheck(loss, difference, gap, mesh.largest(_largest(others)))
    _compare(found, recipe.precision)
    return found


@contextmanager
def _unchanged(run: Run) -> Iterator[None]:
    """Leave a run as it was before the block, in which it computes without dropout."""
    position, rng = run.loader.position, torch.get_rng_state()
    try:
        with run.without_dropout():
            yield
    finally:
        run.model.zero_grad()
        run.loader.position = position
        torch.set_rng_state(rng)


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((float(one.abs().max()) for one in tensors if one.numel()), default=0.0)


def _taken(run: Run) -> list[Tensor]:
    """This rank's part of the gradients of all weights that have one, which are then without."""
    gradients = [local(weight.grad).clone() for weight in run.model.parameters() if weight.grad is not None]
    run.model.zero_grad()
    return gradients


def _compare(found: LossCheck, precision: str) -> None:
    most_loss, most_gradient = BOUNDS[precision]
    if found.difference > most_loss * max(1.0, abs(found.loss)):
        raise LlamitaError(f"{found}: more than {most_loss:g} of it, which {precision} does not explain")
    if found.gradient_difference > most_gradient * found.largest_gradient:
        raise LlamitaError(f"{found}: more than {most_gradient:g} of that, which {precision} does not explain")
