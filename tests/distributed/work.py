"""What the distributed tests run: `python -m tests.distributed.work CHECK` prints one JSON object.

A process of its own with one thread, so that it may fork; it only forks, so that autograd begins in the children.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first step of an optimizer imports it, which takes a second of each process
from torch import Tensor

from llamita.data.loader import Batch, Loader, take
from llamita.files.disk import read_json
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import active
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import Gathering, whole
from llamita.plans import recompute
from llamita.train import run, savings, state
from llamita.train.loop import evaluate, train
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from tests.distributed import group
from tests.unit.train.tiny import CONFIG, make_rows

UNTIED = CONFIG.replace(tie_word_embeddings=False)
RECIPE = Recipe(
    task="sft", optimizer="adamw", lr=3e-3, weight_decay=0.1, clip=0.3, steps=20, length=16, batch_tokens=12 * 16,
    micro_rows=2, precision="fp32", threads=1, seed=7,
)  # fmt: skip
EXACT = replace(RECIPE, exact_scaling=True, steps=4, batch_tokens=8 * 16, micro_rows=1)


def make_run(
    mesh: Any,
    recipe: Recipe,
    *,
    config: Any = CONFIG,
    dtype: torch.dtype = torch.float64,
    prepare: Callable[[LlamaForCausalLM], None] = lambda model: None,
) -> Run:
    """A run of a tiny model with dropout, on the ranks of a mesh. prepare: what is done to the model before."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config).to(dtype)
    prepare(model)
    run.check_ranks(recipe, DataRanks(mesh))
    return run.start(recipe, model, Loader(make_rows(), seed=recipe.seed), processes=mesh)


def take_steps(one: Run, recipe: Recipe, until: int = 10**9) -> list[float]:
    """Train to a step; returns the losses and, at the end, one of held-out rows."""
    batches = [take(make_rows(), torch.arange(first, first + 2)) for first in (0, 2, 4)]
    lines = train(one, recipe, held_out=[], should_stop=lambda: one.step >= until)
    losses = [number for line in lines for number in (line.loss, line.grad_norm)]
    return [*losses, evaluate(one, recipe.training_task(), batches, recipe.precision)[0]]


def digest(one: Run) -> str:
    """The sha256 of weights, optimizer states and random state, whole."""
    found = sha256()
    for name, tensor in sorted((one.weights() | one.memory()).items()):
        found.update(name.encode() + whole(tensor).reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def parity() -> dict[str, Any]:
    """20 steps in fp64 on 1, 2 and 3 ranks: the largest difference of a loss, a norm or a weight from one process."""
    found = {}
    for name, config, counts in (("recompute", CONFIG, (2, 3)), ("savings", UNTIED, (2,))):
        losses, one = group.on(1, lambda mesh, name=name, config=config: _twenty(mesh, name, config))[0]
        assert min(losses[1:-1:2]) > RECIPE.clip, "every gradient is clipped"
        for count in counts:
            others, other = group.on(count, lambda mesh, name=name, config=config: _twenty(mesh, name, config))[0]
            apart = [abs(a - b) for a, b in zip(losses, others, strict=True)]
            apart += [float((one[key] - other[key]).abs().max()) for key in one]
            found[f"{name} {count}"] = max(apart)
    return found


def _twenty(mesh: Any, plan: str, config: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Steps of a model whose layers run again in the backward pass, or train as sessions have them."""

    def prepare(model: LlamaForCausalLM) -> None:
        if plan == "recompute":
            recompute.enable(model, list(model.model.layers))
        else:
            savings.prepare(model, RECIPE)
        assert active(model)

    one = make_run(mesh, RECIPE, config=config, prepare=prepare)
    return take_steps(one, RECIPE), {name: whole(weight).clone() for name, weight in one.weights().items()}


def scaling() -> dict[str, Any]:
    """The bits of 1, 2 and 4 ranks with exact_scaling, the losses, and the rows that each step reads."""
    recipes = {name: replace(EXACT, optimizer=name) for name in ("adamw", "muon", "lion")}
    found: dict[str, Any] = {}
    for count in (1, 2, 4):
        ranks = group.on(count, lambda mesh: {name: _exact(mesh, recipe) for name, recipe in recipes.items()})
        for name in recipes:
            answers = [answer[name] for answer in ranks]
            assert len({digest for digest, _, _ in answers}) == 1, "every rank has the same whole weights"
            rows = sorted(row for _, _, rows in answers for row in rows)
            found[f"{name} {count}"] = [*answers[0][:2], sha256(json.dumps(rows).encode()).hexdigest()]
    other = group.on(2, lambda mesh: _exact(mesh, replace(EXACT, exact_scaling=False, micro_rows=4)))
    return found | {"without": other[0][0]}


def _exact(mesh: Any, recipe: Recipe) -> tuple[str, list[float], list[tuple[int, int, list[int]]]]:
    one = make_run(mesh, recipe, dtype=torch.float32)
    rows, share = [], one.ranks.share

    def shared(batch: Batch, micro_rows: int) -> list[Batch]:
        parts = share(batch, micro_rows)
        rows.extend((one.step, one.ranks.number(n), part.inputs.flatten().tolist()) for n, part in enumerate(parts))
        return parts

    one.ranks.share = shared  # type: ignore[method-assign]
    losses = take_steps(one, recipe)
    return digest(one), losses, rows


def resume() -> dict[str, Any]:
    """2, then 1, then 3 ranks: is what each takes over what was saved, and where do they end?"""
    with tempfile.TemporaryDirectory() as top:
        whole_run = group.on(1, lambda mesh: _part_of_run(mesh, RECIPE, Path(top, "whole"), 20))[0]
        parts = [
            group.on(count, lambda mesh, until=until: _part_of_run(mesh, RECIPE, Path(top, "parts"), until))[0]
            for count, until in ((2, 6), (1, 13), (3, 20))
        ]
        one = state.weights(Path(top, "whole"))
        ends = state.weights(Path(top, "parts"))
        exact, folder = replace(EXACT, steps=6), Path(top, "exact")
        for count, until in ((2, 2), (1, 4), (4, 6)):
            group.on(count, lambda mesh, until=until: _part_of_run(mesh, exact, folder, until))
        group.on(1, lambda mesh: _part_of_run(mesh, exact, Path(top, "exact-whole"), 6))
        return {
            "taken over": [part["restored"] == before["saved"] for before, part in pairwise(parts)],
            "apart": max(float((one[name] - ends[name]).abs().max()) for name in one),
            "tokens": [whole_run["tokens"], parts[-1]["tokens"]],
            "exact": manifest(folder) == manifest(Path(top, "exact-whole")),
        }


def _part_of_run(mesh: Any, recipe: Recipe, folder: Path, until: int) -> dict[str, Any]:
    one = make_run(mesh, recipe)
    if state.has_checkpoint(folder):
        state.restore(one, folder)
    restored = digest(one)
    take_steps(one, recipe, until)
    state.save(one, folder)
    return {"restored": restored, "saved": digest(one), "tokens": one.tokens}


def manifest(folder: Path) -> dict[str, Any]:
    """The sizes and hashes of the files of the newest checkpoint."""
    return read_json(state.newest(folder) / state.MANIFEST)


def kills() -> dict[str, Any]:
    """Kill the rank that writes a save, or the other one: which checkpoint is whole, and does the run end the same?"""
    recipe, ends = replace(EXACT, steps=2), []
    with tempfile.TemporaryDirectory() as top:
        group.on(1, lambda mesh: _part_of_run(mesh, recipe, Path(top, "whole"), 2))
        group.on(1, lambda mesh: _part_of_run(mesh, recipe, Path(top, "begun"), 1))
        for victim, point in ((0, 30), (1, 3)):
            folder = Path(top, str(victim))
            shutil.copytree(Path(top, "begun"), folder)
            died = _ended(lambda v=victim, p=point, f=folder: _killed_save(recipe, f, v, p))[victim]
            newest = state.newest(folder).name
            group.on(2, lambda mesh, folder=folder: _part_of_run(mesh, recipe, folder, 2))
            is_same = manifest(folder) == manifest(Path(top, "whole"))
            ends.append({"killed": died == -signal.SIGKILL, "newest": newest, "same": is_same})
    return {"ends": ends}


def _ended(work: Callable[[], Any]) -> list[int | None]:
    found = group.start(2, work)
    for process, _ in found:
        process.join(group.LONGEST)
    return [process.exitcode for process, _ in found]


def _killed_save(recipe: Recipe, folder: Path, victim: int, point: int) -> None:
    """Go on to the second step, and die in the save, before the `point`-th tensor is gathered by this rank."""
    with group.processes() as mesh:
        one = make_run(mesh, recipe)
        state.restore(one, folder)
        take_steps(one, recipe, 2)
        if one.ranks.rank == victim:
            Gathering.__init__ = _dying(Gathering.__init__, point)  # type: ignore[method-assign]
        state.save(one, folder)


def _dying(begin: Callable[..., None], point: int) -> Callable[..., None]:
    def changed(self: Gathering, tensors: Any) -> None:
        begin(self, tensors)
        self._waiting = Deadly(self._waiting)
        self._waiting.left = point

    return changed


class Deadly(deque[Tensor]):
    """Tensors of which only some are taken, before the process dies."""

    left = 0

    def popleft(self) -> Tensor:
        """The next tensor."""
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().popleft()


CHECKS = {"parity": parity, "scaling": scaling, "resume": resume, "kills": kills}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: CHECKS[name]() for name in sys.argv[1:]}))
