"""What is measured before a run: the fastest threads and precision here, and how many steps fit into its minutes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter

import torch

from llamita.parallel.mesh import from_first
from llamita.parallel.shard import local
from llamita.parallel.tensor import sharded_loss
from llamita.train import optim
from llamita.train.loop import backward, gradients_of
from llamita.train.recipe import Recipe
from llamita.train.run import Run

TURNS = 3  # the first of which warms up
SLACK = 0.1  # how much too slow a run may be before it is shortened


def resolved(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with threads, precision and steps decided: by trial steps of the run where it leaves them open.

    One thread is faster than two on a machine that is busy with other work: they wait for each other. bf16 autocast is
    1.3 to 1.9 times faster on CPUs with avx512_bf16, and several times slower on others. Leaves torch at those threads,
    and the run as it was. Every rank calls it, and the first one's clock decides.
    """
    counts = [torch.get_num_threads()] if recipe.threads is None else [recipe.threads]
    if recipe.threads is None and run.device.type == "cpu":
        counts = list(dict.fromkeys([1, *from_first(lambda: counts)]))
    names = ["fp32", "bf16"] if recipe.precision == "auto" else [recipe.precision]
    is_open = recipe.steps is None or len(counts) > 1 or len(names) > 1
    with _undone(run) if is_open else nullcontext():
        fastest, seconds = _fastest([replace(recipe, threads=count, precision=names[0]) for count in counts], run)
        if len(names) > 1:
            fastest, seconds = _fastest([replace(fastest, precision=name) for name in names], run)
        if recipe.steps is None:
            seconds = seconds or _seconds(fastest, run)
            fastest = replace(fastest, steps=max(1, int(recipe.minutes * 60 / seconds)))
    torch.set_num_threads(fastest.threads or 1)
    return fastest


def _fastest(recipes: list[Recipe], run: Run) -> tuple[Recipe, float | None]:
    """The recipe whose steps are shortest, and the seconds of one; the only one is not measured."""
    if len(recipes) == 1:
        return recipes[0], None
    seconds = [_seconds(recipe, run) for recipe in recipes]
    best = min(range(len(recipes)), key=seconds.__getitem__)
    return recipes[best], seconds[best]


class Deadline:
    """The end of a run that was given minutes: a run that is slower than measured gets fewer steps, to end in time.

    steps: as many as were measured to fit. clock: seconds since some moment.
    """

    def __init__(self, minutes: float, steps: int, clock: Callable[[], float] = perf_counter) -> None:
        self._seconds, self._steps, self._clock = minutes * 60, steps, clock
        self._begun, self._taken = clock(), 0

    def fitting(self, step: int) -> int:
        """How many steps the run should have in all, asked after each of them: at least one more than `step`."""
        self._taken += 1
        passed = self._clock() - self._begun
        most = step + max(1, int((self._seconds - passed) * self._taken / max(passed, 1e-9)))
        return most if most < (1 - SLACK) * self._steps else max(self._steps, step + 1)


@contextmanager
def _undone(run: Run) -> Iterator[None]:
    """Leave a run as it was before the block. Meanwhile a copy of this rank's weights is in memory, as in a save.

    A run whose block fails stays as it is: nobody trains it, and its weights may be whole or sharded then.
    """
    copies, position = [local(weight).clone() for weight in run.weights().values()], run.loader.position
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in run.optimizers]
    with torch.random.fork_rng(), sharded_loss(run.model):
        yield
    for weight, before in zip(run.weights().values(), copies, strict=True):  # FSDP may have moved them meanwhile
        local(weight).copy_(before)
    for optimizer, state in zip(run.optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    run.loader.position = position


def _seconds(recipe: Recipe, run: Run) -> float:
    """The seconds of one step, the shorter of two, by the first rank's clock."""
    torch.set_num_threads(recipe.threads or 1)
    seconds = min([_step(run, recipe) for _ in range(TURNS)][1:])
    return from_first(lambda: seconds)


def _step(run: Run, recipe: Recipe) -> float:
    started = perf_counter()
    backward(run, recipe.training_task(), run.loader.next(recipe.rows), recipe, gradients_of(run, recipe))
    optim.step(run.optimizers)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return perf_counter() - started
