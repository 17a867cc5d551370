"""Rewinding: the exact weights of any step of a run, by taking the steps after a checkpoint again.

Exact resume makes every step repeatable, so nothing has to be stored for it but the history of the recipe.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch.distributed.device_mesh import DeviceMesh

from llamita.errors import LlamitaError, UsageError
from llamita.files.disk import explained, read_json, write_text
from llamita.parallel import mesh
from llamita.train import history, setup, state
from llamita.train.draft import COUNTERS, LATEST
from llamita.train.metrics import Metrics, read_log
from llamita.train.session import INSIDE, LOG, Session
from llamita.train.setup import TOKENIZER

Observer = Callable[[Metrics], None]  # gets every step that is taken again


def rewind(
    source: Path,
    target: Path,
    step: int,
    *,
    observer: Observer,
    device: str = "auto",
    offline: bool = False,
    processes: DeviceMesh | None = None,
) -> None:
    """Write the run of a folder as it was after a step to a new folder, model and checkpoint, ready to be resumed.

    Starts from the newest whole checkpoint at or before the step, or else from the first weights, and takes the steps
    after it again, each by the recipe that held then. Every loss and gradient norm must be the logged one.
    Raises UsageError for a step that was not taken, a target that exists, or other data; LlamitaError where a step
    comes out otherwise; the target is then removed.
    """
    recorded = mesh.from_first(lambda: _checked(source, target, step))
    entries = mesh.from_first(lambda: history.read_history(source / INSIDE))
    try:
        start = mesh.from_first(lambda: _copied(source / INSIDE, target / INSIDE, step))
        for stop in [*history.changes_between(entries, start or 0, step), step]:
            recipe = history.recipe_at(entries, start or 0)
            make = setup.begin if start is None else setup.resume
            shared = mesh.arranged(processes, recipe.degrees)
            found = make(recipe, target, device=device, offline=offline, processes=shared)
            _check_data(found, source / INSIDE)
            _take(found, stop, recorded, observer)
            start = stop
    except BaseException:
        mesh.from_first(lambda: shutil.rmtree(target, ignore_errors=True))
        raise


def _checked(source: Path, target: Path, step: int) -> dict[int, Metrics]:
    """The log of a run by step, once the request makes sense."""
    if not (source / INSIDE / history.FILE).is_file():
        raise UsageError(f"{source} has no history of a run, so no step can be taken again: check the folder")
    recorded = {metrics.step: metrics for metrics in read_log(source / INSIDE / LOG)}
    last = max(recorded, default=0)
    if not 0 <= step <= last:
        raise UsageError(f"the run in {source} has taken {last} steps: give a --step from 0 to {last}")
    if target.exists():
        raise UsageError(f"{target} exists already: remove it, or rename it")
    return recorded


def _copied(source: Path, target: Path, step: int) -> int | None:
    """Copy the newest whole checkpoint at or before a step, the log and the history; returns the checkpoint's step."""
    with explained("write", target):
        target.mkdir(parents=True)
        found = state.newest_at(source, step)
        if found is not None:
            # Links: the files of a checkpoint are never written again.
            shutil.copytree(found, target / found.name, copy_function=_link)
            write_text(target / LATEST, found.name + "\n")
        if (source / TOKENIZER).is_dir():
            shutil.copytree(source / TOKENIZER, target / TOKENIZER)
        for name in (LOG, history.FILE):
            shutil.copyfile(source / name, target / name)
    return None if found is None else read_json(found / COUNTERS)["step"]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _check_data(found: Session, inside: Path) -> None:
    """Raise UsageError where a run from its first step reads other data than the one in `inside`."""
    data = mesh.from_first(lambda: read_json(state.newest(inside) / COUNTERS)["data"])
    if data != found.run.loader.fingerprint:
        raise UsageError(f"the data is not what {inside} was trained on: restore the files of the run")


def _take(found: Session, stop: int, recorded: dict[int, Metrics], observer: Observer) -> None:
    for metrics in found.steps(lambda: found.run.step >= stop):
        if (logged := recorded.get(metrics.step)) is None:
            raise LlamitaError(f"the log of the run lacks step {metrics.step}, so it cannot be compared: restore {LOG}")
        if (metrics.loss, metrics.grad_norm) != (logged.loss, logged.grad_norm):
            raise LlamitaError(
                f"step {metrics.step} has a loss of {metrics.loss!r} and had {logged.loss!r}: the machine, torch, the "
                "base model or the number of processes is not what it was"
            )
        observer(metrics)
