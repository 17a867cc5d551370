"""Checkpoints of a run, exact and safe: one is there whole or not at all, wherever the process dies.

A checkpoint is a folder `step-00000100` with weights, optimizer state, counters, and a manifest of sizes and sha256.
One process writes two safetensors files, which it maps again without a copy; of several, each writes its shards.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import creating, explained, read_json
from llamita.files.safetensors import SafetensorsFile, write_tensors
from llamita.parallel.mesh import from_first, together
from llamita.train.draft import COUNTERS, NAME, Draft, begun, damage, facts, latest
from llamita.train.run import Run

WEIGHTS, MEMORY = "model.safetensors", "optimizer.safetensors"  # the files of one process
WEIGHT, STATE = "model/", "optimizer/"  # what the names of tensors begin with where several ranks write both
LOCK = "lock"
COUNT = 2  # checkpoints that stay, unless the recipe says another number
Tensors = dict[str, Tensor]


def save(run: Run, folder: Path, *, keep: int = COUNT) -> Path:
    """Write a checkpoint of one process and make it the latest; of all, the newest `keep` stay. Returns its folder.

    Raises LlamitaError where the disk is full, or AccessError; the checkpoint before then stays the latest.
    """
    draft = drafted(run, folder, keep=keep)
    if draft is None:
        return target_of(run, folder)
    with draft.written():
        for name, tensors in ((WEIGHTS, run.weights()), (MEMORY, run.memory())):
            with creating(draft.folder / name, draft.target / name) as file:
                write_tensors(file, tensors, {"format": "pt"})
        draft.publish({name: facts(draft.folder / name) for name in (WEIGHTS, MEMORY)})
    return draft.target


def drafted(run: Run, folder: Path, *, keep: int) -> Draft | None:
    """An empty draft of the run's checkpoint, or None where that is the latest already."""
    target = target_of(run, folder)
    if latest(folder) == target.name and not damage(target):
        return None
    counters = {
        "step": run.step,
        "tokens": run.tokens,
        "position": run.loader.position,
        "data": run.loader.fingerprint,
        "base": run.base,
    }
    return begun(target, counters, keep=keep)


def target_of(run: Run, folder: Path) -> Path:
    """The folder of the checkpoint that a run would write now."""
    return folder / f"step-{run.step:08d}"


def restore(run: Run, folder: Path) -> int:
    """Put a run back to its latest checkpoint that is whole; returns that step. The loader's data must be the same.

    Each rank takes its shards, however many ranks have written it.
    Raises UsageError where there is no checkpoint or other data, BrokenFileError where none is whole.
    """
    target = from_first(lambda: newest(folder))
    return together(lambda: _restore(run, target))


def _restore(run: Run, target: Path) -> int:
    counters, folder = read_json(target / COUNTERS), target.parent
    if counters["data"] != run.loader.fingerprint:
        raise UsageError(f"the data is not what {folder} was trained on: give the same files, or another -o folder")
    if counters.get("base", "") != run.base:
        raise UsageError(f"the base model is not what {folder} was trained on: give that one, or another -o folder")
    run.restore(*_read(run, target))
    run.step, run.tokens, run.loader.position = counters["step"], counters["tokens"], counters["position"]
    return run.step


def _read(run: Run, target: Path) -> tuple[Tensors, Tensors]:
    """The weights and the memory of a checkpoint: whole from the files of one process, else this rank's shards."""
    if (target / WEIGHTS).exists():
        return _tensors(target / WEIGHTS), _tensors(target / MEMORY)
    from llamita.train import shards  # here, as it loads torch.distributed.checkpoint

    own = run.weights()
    return shards.load(target, WEIGHT, own.get, own.__contains__), shards.load(target, STATE, run.owner, run.needs)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder has a checkpoint, whole or not."""
    return any(NAME.fullmatch(path.name) for path in folder.glob("step-*"))


def newest(folder: Path) -> Path:
    """The checkpoint to resume from: the latest, or the newest other one if that is damaged.

    Raises UsageError where there is none, and BrokenFileError where none is whole.
    """
    found = sorted((path.name for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)
    last = latest(folder)
    names = sorted(found, key=lambda name: name != last)  # stable: the latest first, then the newest
    if not names:
        raise UsageError(f"{folder} has no checkpoint to resume from: leave --resume out to begin")
    damages = [(folder / name, damage(folder / name)) for name in names]
    for path, wrong in damages:
        if not wrong:
            return path
    raise BrokenFileError(f"{damages[0][0]} is damaged ({damages[0][1]}): no checkpoint is whole, begin again")


def newest_at(folder: Path, step: int) -> Path | None:
    """The newest checkpoint that is whole and of this step or one before, or None."""
    names = sorted((path.name for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)
    fitting = (folder / name for name in names if int(name.removeprefix("step-")) <= step)
    return next((path for path in fitting if not damage(path)), None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder alone; the lock ends with the process, however it ends. Raises UsageError if it is held."""
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise UsageError(f"another process trains in {folder}: wait for it, or give another -o folder") from error
        yield


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def weights(folder: Path) -> Tensors:
    """The weights of the latest checkpoint that is whole, on the CPU; of one process, sharing memory with its file."""
    target = newest(folder)
    if (target / WEIGHTS).exists():
        return _tensors(target / WEIGHTS)
    from llamita.train import shards

    return shards.load(target, WEIGHT)


def _tensors(path: Path) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    return {name: file.load(name) for name in file.entries}
