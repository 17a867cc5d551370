"""Checks of training on several ranks, for a process that only forks: so autograd begins in the children."""

import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from threading import Event, Timer
from typing import Any, TypeVar

import torch
import torch._dynamo  # the first step of an optimizer imports it, which takes a second of each process
from torch import Tensor

from llamita.cli.ranks import joined
from llamita.data.loader import Batch, Loader, take
from llamita.errors import LlamitaError
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import active
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import whole
from llamita.plans import recompute
from llamita.train import draft, run, savings, shards, state
from llamita.train.loop import evaluate, train
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.saver import Saver
from tests.distributed import group
from tests.unit.train.tiny import CONFIG, make_rows

T = TypeVar("T")

UNTIED = CONFIG.replace(tie_word_embeddings=False)
RECIPE = Recipe(
    task="sft", optimizer="adamw", lr=3e-3, weight_decay=0.1, clip=0.3, steps=20, length=16, batch_tokens=12 * 16,
    micro_rows=2, precision="fp32", threads=1, seed=7,
)  # fmt: skip
EXACT = replace(RECIPE, exact_scaling=True, steps=3, batch_tokens=8 * 16, micro_rows=1)


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
    for name, config, counts in (("recompute", CONFIG, (3,)), ("savings", UNTIED, (2,))):
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
    recipes = {name: replace(EXACT, optimizer=name, steps=2) for name in ("adamw", "muon", "lion")}
    found: dict[str, Any] = {}
    for count in (1, 2, 4):
        ranks = group.on(count, lambda mesh: {name: _exact(mesh, recipe) for name, recipe in recipes.items()})
        for name in recipes:
            answers = [answer[name] for answer in ranks]
            assert len({digest for digest, _, _ in answers}) == 1, "every rank has the same whole weights"
            rows = sorted(row for _, _, rows in answers for row in rows)
            found[f"{name} {count}"] = [*answers[0][:2], sha256(json.dumps(rows).encode()).hexdigest()]
    other = group.on(2, lambda mesh: _exact(mesh, replace(EXACT, exact_scaling=False, micro_rows=4, steps=2)))
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
        recipe = replace(RECIPE, steps=6)
        whole_run = group.on(1, lambda mesh: _part_of_run(mesh, recipe, Path(top, "whole"), 6))[0]
        parts = [
            group.on(count, lambda mesh, until=until: _part_of_run(mesh, recipe, Path(top, "parts"), until))[0]
            for count, until in ((2, 2), (1, 4), (3, 6))
        ]
        one = state.weights(Path(top, "whole"))
        ends = state.weights(Path(top, "parts"))
        folder = Path(top, "exact")
        for count, until in ((2, 1), (1, 2), (4, 3)):
            group.on(count, lambda mesh, until=until: _part_of_run(mesh, EXACT, folder, until))
        group.on(1, lambda mesh: _part_of_run(mesh, EXACT, Path(top, "exact-whole"), 3))
        read = [
            group.on(1, lambda mesh, name=name: _part_of_run(mesh, EXACT, Path(top, name), 3))[0]["restored"]
            for name in ("exact", "exact-whole")
        ]
        return {
            "taken over": [part["restored"] == before["saved"] for before, part in pairwise(parts)],
            "apart": max(float((one[name] - ends[name]).abs().max()) for name in one),
            "tokens": [whole_run["tokens"], parts[-1]["tokens"]],
            "exact": read[0] == read[1],
        }


# Rows are of whole blocks of 256 numbers, or two processes have as many blocks each.
WIDE = {
    "config": CONFIG.replace(hidden_size=256, intermediate_size=80, num_hidden_layers=1, head_dim=128),
    "dtype": torch.float32,
}


def optimizers() -> dict[str, Any]:
    """Optimizers that know more of a weight than its parts: 2 ranks, then one, next to one alone; and a refusal."""
    adafactor, eight = (replace(EXACT, optimizer=name, steps=3) for name in ("adafactor", "adamw8bit"))
    adafactor = replace(adafactor, exact_scaling=False, lr=0.01)
    cases: dict[str, tuple[Recipe, dict[str, Any]]] = {
        "adafactor": (adafactor, {"config": UNTIED}), "adamw8bit": (eight, WIDE),
    }  # fmt: skip
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory() as top:
        for name, (recipe, kind) in cases.items():
            parts = [
                group.on(
                    count, lambda mesh, at=at, n=n, r=recipe, k=kind: _part_of_run(mesh, r, Path(top, at), n, **k)
                )[0]
                for at, count, n in ((f"{name} whole", 1, 3), (name, 2, 2), (name, 1, 3))
            ]
            one, other = (state.weights(Path(top, at)) for at in (f"{name} whole", name))
            found[name] = {
                "taken over": parts[2]["restored"] == parts[1]["saved"],
                "same": parts[2]["saved"] == parts[0]["saved"],
                "apart": max(float((one[key] - other[key]).abs().max()) for key in one),
            }
    cut = WIDE | {"config": WIDE["config"].replace(hidden_size=272, intermediate_size=16)}
    wrong = (eight, replace(adafactor, exact_scaling=True))
    return found | {"refused": group.on(2, lambda mesh: [_refusal(mesh, recipe, cut) for recipe in wrong])[0]}


def _refusal(mesh: Any, recipe: Recipe, kind: dict[str, Any]) -> str:
    try:
        make_run(mesh, recipe, **kind)
    except LlamitaError as error:
        return str(error)
    return ""


def _part_of_run(mesh: Any, recipe: Recipe, folder: Path, until: int, **kind: Any) -> dict[str, Any]:
    one = make_run(mesh, recipe, **kind)
    restored, saved = gone_on(one, folder, lambda: take_steps(one, recipe, until), lambda: digest(one))
    return {"restored": restored, "saved": saved, "tokens": one.tokens}


def gone_on(one: Run, folder: Path, take: Callable[[], object], look: Callable[[], T]) -> tuple[T, T]:
    """Restore a run, where it was saved before, go on and save it: what there is to see after restoring and saving."""
    if state.has_checkpoint(folder):
        state.restore(one, folder)
    restored = look()
    take()
    with Saver(one, folder) as saver:
        saver.save()
    return restored, look()


# Where ranks die in a save: the function that kills them, which call of that, which ranks, and what is whole then.
DEATHS: dict[str, tuple[Any, str, int, tuple[int, ...], int]] = {
    "before its file": (shards, "write_tensors", 1, (1,), 1),
    "all before their files": (shards, "write_tensors", 1, (0, 1), 1),
    "after its file": (shards, "facts", 1, (1,), 1),
    "all after their files": (shards, "facts", 1, (0, 1), 1),
    "before the manifest": (draft.Draft, "_write_json", 2, (0,), 1),
    "before the name": (draft, "sync_folder", 1, (0,), 1),
    "after the name": (draft, "sync_folder", 2, (0,), 1),
    "before the latest": (draft, "write_text", 1, (0,), 1),
    "after the latest": (draft, "_sweep", 1, (0,), 2),
}


def kills() -> dict[str, Any]:
    """Kill ranks in a save: which checkpoint is whole, what do those say that are left, and does the run end the same?

    A list of what was not as it should be, for each point.
    """
    recipe, wrong = replace(EXACT, steps=2, batch_tokens=2 * 16), {}  # a row for each: the steps are not looked at
    with tempfile.TemporaryDirectory() as top:
        folders = {name: Path(top, name) for name in DEATHS}
        end = group.on(1, lambda mesh: _part_of_run(mesh, recipe, Path(top, "whole"), 2))[0]["saved"]
        group.on(2, lambda mesh: _part_of_run(mesh, recipe, Path(top, "begun"), 1))
        for name, folder in folders.items():
            shutil.copytree(Path(top, "begun"), folder)
            wrong[name] = _deaths(recipe, folder, name)

        def go_on(mesh: Any) -> dict[str, Any]:
            return {name: _part_of_run(mesh, recipe, folder, 2)["saved"] for name, folder in folders.items()}

        for name, saved in group.on(1, go_on)[0].items():
            left = sorted(path.name for path in folders[name].glob("step-*"))
            wrong[name] += [] if saved == end else ["the run ends with other tensors"]
            wrong[name] += [] if left == ["step-00000001", "step-00000002"] else left
    return wrong


def _deaths(recipe: Recipe, folder: Path, name: str) -> list[Any]:
    """Go on to the second step, and die in the save: what is not as it should be."""
    *_, victims, whole_one = DEATHS[name]
    wrong = list[Any]()
    for rank, (process, pipe) in enumerate(group.start(2, lambda: _killed_save(recipe, folder, name))):
        process.join(300)
        if rank in victims:
            wrong += [] if process.exitcode == -signal.SIGKILL else [f"rank {rank} ended with {process.exitcode}"]
        else:
            said = group.answer(process, pipe)
            wrong += [] if "has lost another one, which has died" in said else [said]
    newest = state.newest(folder).name
    return wrong + ([] if newest == f"step-{whole_one:08d}" else [newest])


def _killed_save(recipe: Recipe, folder: Path, name: str) -> str:
    """Go on to the second step, and die in the save; what a rank that is left says."""
    module, function, call, victims, _ = DEATHS[name]
    try:
        with joined("cpu") as mesh:
            one = make_run(mesh, recipe)
            state.restore(one, folder)
            list(train(one, recipe, held_out=[], should_stop=lambda: False))
            if one.ranks.rank in victims:
                setattr(module, function, _dying(getattr(module, function), call))
            with Saver(one, folder) as saver:
                saver.save()
    except LlamitaError as error:
        return str(error)
    return "nothing"


def _dying(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, whose n-th call ends the process."""
    left = iter(range(call - 1))

    def changed(*given: Any, **named: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    return changed


def saving() -> dict[str, Any]:
    """Two ranks take a step while they save, save again, and meet a full disk."""
    with tempfile.TemporaryDirectory() as top:
        found = group.on(2, lambda mesh: _saving(mesh, Path(top, "run")))
        return {**found[0], "full": [one["full"] for one in found]}


def _saving(mesh: Any, folder: Path) -> dict[str, Any]:
    one, may_write, write = make_run(mesh, EXACT), Event(), shards.write_tensors

    def waiting(*given: Any) -> None:
        assert may_write.wait(300)
        write(*given)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found: dict[str, Any] = {}
    take_steps(one, EXACT, 1)
    first = {name: whole(weight).clone() for name, weight in one.weights().items()}
    with Saver(one, folder) as saver:
        shards.write_tensors = waiting
        saver.save()
        take_steps(one, EXACT, 2)  # while the files are not there
        found["before"] = draft.latest(folder)
        Timer(0.1, may_write.set).start()
        saver.save()
        found["between"] = draft.latest(folder)  # the second save has waited for the first
    read = shards.load(folder / "step-00000001", state.WEIGHT)
    found["same"] = read.keys() == first.keys() and all(torch.equal(read[name], first[name]) for name in read)
    take_steps(one, EXACT, 3)
    shards.write_tensors = full if one.ranks.rank == 1 else write
    try:
        with Saver(one, folder) as saver:
            saver.save()
    except LlamitaError as error:
        found["full"] = str(error).replace(str(folder), "")
    return {**found, "left": sorted(path.name for path in folder.iterdir()), "newest": state.newest(folder).name}


CHECKS = {
    "parity": parity,
    "optimizers": optimizers,
    "scaling": scaling,
    "resume": resume,
    "kills": kills,
    "saving": saving,
}


def check(*names: str) -> dict[str, Any]:
    """What some checks found, by name."""
    return {name: CHECKS[name]() for name in names}
