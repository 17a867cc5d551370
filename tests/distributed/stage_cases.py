"""What stages of a model compute, alone and with the other dims of the mesh, next to what one process computes.

For a process that only forks: so autograd begins in the children.
"""

import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the optimizers and the schedules import, before the processes part
import torch.distributed.pipelining
from torch import Tensor

from llamita.data.loader import Batch
from llamita.parallel import mesh
from llamita.parallel.mesh import Degrees
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import local, whole
from llamita.parallel.tensor import sharded_loss
from llamita.train import savings
from llamita.train.check_loss import check_loss
from llamita.train.loop import backward, evaluate, gradients_of
from llamita.train.method import METHODS, adapt
from llamita.train.recipe import Recipe
from llamita.train.run import Run, check_ranks, start
from tests.distributed import group
from tests.distributed.tensor_cases import CONFIG, largest, model_of
from tests.distributed.work import gone_on

LENGTH, ROWS, STEPS, FEW, ONE, RESUMED = 14, 6, 20, 2, 1, 3
RECIPE = Recipe(
    task="pretrain", optimizer="adamw", precision="fp32", lr=2e-3, steps=STEPS, threads=1, micro_rows=2, length=LENGTH,
    batch_tokens=ROWS * LENGTH, weight_decay=0.1, rates="*.0.*.q_proj.weight=1.5,model.norm.weight=2", model="small",
)  # fmt: skip
LAYERS = {"num_hidden_layers": 4}
INTERLEAVED = {"pp_schedule": "interleaved"}
HALVES = {"micro_rows": ROWS // 2}  # micro-batches: two, for each costs processes of DTensors a tenth of a second
# What the ranks run: their number, how they share the work, and what else is different from the one process.
CASES: dict[str, tuple[int, Degrees, dict[str, Any]]] = {
    "1f1b": (2, Degrees(pp=2), {}),
    "gpipe": (2, Degrees(pp=2), {"pp_schedule": "gpipe", "recompute": "full"}),
    "interleaved": (2, Degrees(pp=2), INTERLEAVED),
    "three stages": (3, Degrees(pp=3), {}),
    "pp x dp_shard": (4, Degrees(pp=2, dp_shard=2), {}),
    "tp x cp": (4, Degrees(tp=2, cp=2), HALVES),
    "cp x dp_shard": (4, Degrees(cp=2, dp_shard=2), {}),
    "pp x cp x tp": (8, Degrees(pp=2, cp=2, tp=2), INTERLEAVED | HALVES),
    "dp_shard x cp x tp": (8, Degrees(dp_shard=2, cp=2, tp=2), {}),
}
# Of adapters three steps: of the embedding and a layer in the first of two stages, and of frozen weights in blocks.
ADAPTERS: dict[str, tuple[int, Degrees, dict[str, Any]]] = {
    "lora, pp": (2, Degrees(pp=2), {"rates": "", "method": "lora", "targets": "embed_tokens,layers.1.*_proj"}),
    "qlora, cp": (2, Degrees(cp=2), {"rates": "", "method": "qlora", "base_format": "int8"}),
}
TWENTY = ("1f1b", "interleaved")
# One step, a check of the loss, and held-out rows: the steps of these two dims are those of either three with them.
SINGLE = ("tp x cp",)
# Of eight processes the steps alone: each plans, for tens of milliseconds, every operation of DTensors.
STEPS_ALONE = ("pp x cp x tp", "dp_shard x cp x tp", *ADAPTERS)

# A run that is saved and resumed: by how many processes, shared how, until which step.
PARTS: tuple[tuple[int, Degrees, dict[str, Any], int], ...] = (
    (2, Degrees(pp=2), INTERLEAVED, 1),
    (1, Degrees(), {}, 2),
    (4, Degrees(pp=2, dp_shard=2), INTERLEAVED, RESUMED),
)


class Steps:
    """A source of batches that depend on the step alone."""

    position, fingerprint = 0, "steps"

    def __len__(self) -> int:
        return ROWS

    def next(self, count: int) -> Batch:
        """The batch of the step that the position says."""
        return batch(self.position)


def batch(step: int) -> Batch:
    """Rows of packed documents; the first two, and the second half of the last one, learn nothing."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randint(CONFIG.vocab_size, (2, ROWS, LENGTH), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    targets[:2], targets[-1, LENGTH // 2 :] = -100, -100
    ends = (4, 9, LENGTH // 2, 0, 1, 13)
    positions = torch.stack([torch.cat([torch.arange(n), torch.arange(LENGTH - n)]) for n in ends])
    return Batch(inputs, targets, positions)


def make_run(recipe: Recipe, found: Any, *, is_tied: bool) -> Run:
    """A run of a model of four layers, as a session makes it."""
    model, method, base = model_of(LAYERS | {"tie_word_embeddings": is_tied}), METHODS[recipe.method], ""
    if method.is_adapter:
        block_format = recipe.base_format if method.is_quantized else None
        base = adapt(model, recipe.lora, block_format=block_format, seed=recipe.seed)
        model.double()
    check_ranks(recipe, DataRanks(found))
    savings.prepare(model, recipe)
    count = model.num_parameters()
    run = start(recipe, model, Steps(), processes=found, base=base)
    assert run.num_parameters == count, "those of all processes"
    return run


def take_steps(run: Run, recipe: Recipe, until: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    task, gradients, seen = recipe.training_task(), gradients_of(run, recipe), []
    with sharded_loss(run.model):
        while run.step < until:
            loss = backward(run, task, batch(run.step), recipe, gradients)
            seen.append((loss, gradients.clip(0.3)))
            for optimizer in run.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.step += 1
    return seen


def held_out_loss(run: Run, recipe: Recipe) -> float:
    """The loss of rows that are held out."""
    batches = [batch(STEPS), batch(STEPS + 1), batch(STEPS + 2)]
    with sharded_loss(run.model):
        return evaluate(run, recipe.training_task(), batches, recipe.precision)[0]


def weights_of(run: Run) -> dict[str, Tensor]:
    """The weights that a process knows, whole."""
    return {name: whole(weight).clone() for name, weight in run.weights().items()}


def reference(
    recipe: Recipe = RECIPE, numbers: tuple[int, ...] = (ONE, FEW, RESUMED, STEPS), *, is_tied: bool = True
) -> dict[int, tuple[Any, dict[str, Tensor], float]]:
    """What one process computes in few steps, in those of the run that is resumed, and in twenty."""

    def work(found: Any) -> Any:
        run = make_run(recipe, found, is_tied=is_tied)
        seen, found = list[tuple[float, float]](), {}
        for steps in numbers:
            seen = [*seen, *take_steps(run, recipe, steps)]
            found[steps] = seen, weights_of(run), held_out_loss(run, recipe)
        return found

    return group.on(1, work)[0]


def recipe_of(degrees: Degrees) -> Recipe:
    """The recipe of processes that share the work."""
    return replace(RECIPE, tp=degrees.tp, cp=degrees.cp, pp=degrees.pp)


def shared(name: str, steps: int, *, is_tied: bool) -> list[Any]:
    """What each process of a case computes: losses and norms, the weights that it knows, and the held-out loss.

    Last comes the share of the numbers of these weights that it keeps.
    """
    count, degrees, changes = (CASES | ADAPTERS)[name]
    recipe = replace(recipe_of(degrees), **changes)

    def work(found: Any) -> Any:
        run = make_run(recipe, mesh.arranged(found, degrees), is_tied=is_tied)
        is_more = name not in STEPS_ALONE
        if run.pipeline is None and is_more:
            check_loss(run, recipe)
        seen = take_steps(run, recipe, steps)
        held_out, weights = held_out_loss(run, recipe) if is_more else None, weights_of(run)
        sizes = [(local(one).numel(), one.numel()) for one in run.weights().values()]
        return seen, weights, held_out, sum(own for own, _ in sizes) / max(1, sum(size for _, size in sizes))

    return group.on(count, work)


def compare(name: str, steps: int, one: Any, *, is_tied: bool) -> dict[str, Any]:
    """How far the processes of a case are from one, and whether they have all weights between them."""
    ranks = shared(name, steps, is_tied=is_tied)
    (seen, weights, loss), (figures, _, held_out, _) = one[steps], ranks[0]
    kept = [sum(weight.numel() for weight in known.values()) for _, known, *_ in ranks]
    pairs = [pair for ours in zip(seen, figures, strict=True) for pair in zip(*ours, strict=True)]
    return {
        "steps": largest([*pairs, (loss, loss if held_out is None else held_out)]),
        "weights": largest((weights[key], weight) for _, known, *_ in ranks for key, weight in known.items()),
        "same": all((found, last) == (figures, held_out) for found, _, last, _ in ranks),
        "all": {key for _, known, *_ in ranks for key in known} == weights.keys(),
        "kept": max(share for *_, share in ranks),
        "share": max(kept) / sum(weight.numel() for weight in weights.values()),
    }


def resumed(weights: dict[str, Tensor], parts_of_run: Any = PARTS) -> dict[str, Any]:
    """Stages, one process and stages again: is what each takes over what was saved, and how far is the end from one?"""
    with tempfile.TemporaryDirectory() as top:
        parts = [_part(Path(top), *one) for one in parts_of_run]
    taken = [_equal(before[1], after[0]) for before, after in pairwise(parts)]
    return {"taken over": taken, "apart": largest((weights[name], parts[-1][1][name]) for name in weights)}


def _part(
    folder: Path, count: int, degrees: Degrees, changes: dict[str, Any], until: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors of a checkpoint after it was read, and of the one that is then written."""
    recipe = replace(recipe_of(degrees), **changes)

    def work(found: Any) -> Any:
        run = make_run(recipe, mesh.arranged(found, degrees), is_tied=True)
        return gone_on(run, folder, lambda: take_steps(run, recipe, until), lambda: _known(run))

    ranks = group.on(count, work)
    return {k: v for one, _ in ranks for k, v in one.items()}, {k: v for _, one in ranks for k, v in one.items()}


def _known(run: Run) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in (run.weights() | run.memory()).items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check(*names: str) -> dict[str, Any]:
    """All cases, of a model whose head is the embedding; the first also of one with a head of its own."""
    tied = reference()
    steps = dict.fromkeys(CASES, FEW) | dict.fromkeys(TWENTY, STEPS) | dict.fromkeys(SINGLE, ONE)
    found = {name: compare(name, steps[name], tied, is_tied=True) for name in names}
    if "1f1b" in names:
        found["untied"] = compare("1f1b", FEW, reference(is_tied=False), is_tied=False)
        found["resumed"] = resumed(tied[RESUMED][1])
        found |= adapted()
    return found


def adapted() -> dict[str, Any]:
    """The cases of adapters; the first is also saved after a step, and goes on in one process."""
    found = dict[str, Any]()
    for name, (count, degrees, changes) in ADAPTERS.items():
        one = reference(replace(RECIPE, **changes), (RESUMED,))
        found[name] = compare(name, RESUMED, one, is_tied=True)
        if not found.get("adapter resumed"):
            parts = (count, degrees, changes, 1), (1, Degrees(), changes, RESUMED)
            found["adapter resumed"] = resumed(one[RESUMED][1], parts)
    return found
