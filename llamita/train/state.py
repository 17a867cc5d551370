"""Checkpoints of a run, exact and safe: one is there whole or not at all, wherever the process dies.

A checkpoint is a folder `step-00000100` with weights, optimizer state, counters, and a manifest of sizes and sha256.
It is written under another name, synced, and renamed; only then does `latest` name it.
"""

import json
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from torch import Tensor

from llamita.errors import BrokenFileError, LlamitaError, UsageError
from llamita.files.disk import creating, explained, read_json, read_text, sync_folder, write_text
from llamita.files.safetensors import SafetensorsFile, in_order, write_tensors
from llamita.parallel.mesh import from_first, is_first, together
from llamita.parallel.shard import Gathering
from llamita.train.run import Run

WEIGHTS, MEMORY, COUNTERS, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
LATEST, LOCK = "latest", "lock"
COUNT = 2  # checkpoints that stay, unless the recipe says another number
Files = dict[str, dict[str, Tensor]]  # file name -> tensor name -> tensor
_NAME, _DRAFT = re.compile(r"step-\d{8}"), re.compile(r"step-\d{8}\.draft-[0-9a-f]{8}")


def save(run: Run, folder: Path, *, keep: int = COUNT) -> Path:
    """Write a checkpoint and make it the latest; of all, the newest `keep` stay. Returns its folder.

    Every rank calls it and gives its shards; rank 0 writes, the same files whatever the number of ranks.
    Raises LlamitaError where the disk is full, or AccessError; the checkpoint before then stays the latest.
    """
    target = folder / f"step-{run.step:08d}"
    if from_first(lambda: _latest(folder) == target.name and not _damage(target)):
        return target
    files = {WEIGHTS: run.weights(), MEMORY: run.memory()}
    shards = Gathering(tensors[name] for tensors in files.values() for name in in_order(tensors))

    def publish() -> None:
        try:
            _publish(run, files, target, shards, keep=keep)
        finally:
            shards.drain()

    if not is_first():
        shards.drain()
    from_first(publish)
    return target


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
    run.restore(_tensors(target / WEIGHTS), _tensors(target / MEMORY))
    run.step, run.tokens, run.loader.position = counters["step"], counters["tokens"], counters["position"]
    return run.step


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder has a checkpoint, whole or not."""
    return any(_NAME.fullmatch(path.name) for path in folder.glob("step-*"))


def newest(folder: Path) -> Path:
    """The checkpoint to resume from: the latest, or the newest other one if that is damaged."""
    found = sorted((path.name for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)
    latest = _latest(folder)
    names = sorted(found, key=lambda name: name != latest)  # stable: the latest first, then the newest
    if not names:
        raise UsageError(f"{folder} has no checkpoint to resume from: leave --resume out to begin")
    damages = [(folder / name, _damage(folder / name)) for name in names]
    for path, damage in damages:
        if not damage:
            return path
    raise BrokenFileError(f"{damages[0][0]} is damaged ({damages[0][1]}): no checkpoint is whole, begin again")


def newest_at(folder: Path, step: int) -> Path | None:
    """The newest checkpoint that is whole and of this step or one before, or None."""
    names = sorted((path.name for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)
    fitting = (folder / name for name in names if int(name.removeprefix("step-")) <= step)
    return next((path for path in fitting if not _damage(path)), None)


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


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the latest checkpoint that is whole, on the CPU, sharing memory with its file."""
    return _tensors(newest(folder) / WEIGHTS)


def _publish(run: Run, files: Files, target: Path, shards: Gathering, *, keep: int) -> None:
    """Write a checkpoint under another name, then give it its own."""
    folder = target.parent
    draft = folder / f"{target.name}.draft-{secrets.token_hex(4)}"
    with explained("write", target):
        draft.mkdir(parents=True)
        try:
            _write(run, files, draft, shards)
            shutil.rmtree(target, ignore_errors=True)  # of a run that died before it named this one the latest
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(folder)
    write_text(folder / LATEST, target.name + "\n")
    _sweep(folder, latest=target.name, keep=keep)


def _write(run: Run, files: Files, draft: Path, shards: Gathering) -> None:
    counters = {
        "step": run.step,
        "tokens": run.tokens,
        "position": run.loader.position,
        "data": run.loader.fingerprint,
        "base": run.base,
    }
    for name, tensors in files.items():
        with creating(draft / name) as file:
            write_tensors(file, tensors, {"format": "pt"}, fetch=shards.take)
    _write_json(draft / COUNTERS, counters)
    _write_json(draft / MANIFEST, {name: _facts(draft / name) for name in (WEIGHTS, MEMORY, COUNTERS)})
    sync_folder(draft)


def _write_json(path: Path, value: Any) -> None:
    with creating(path) as file:
        file.write(json.dumps(value, indent=2).encode())


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _damage(target: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if nothing is."""
    try:
        manifest = read_json(target / MANIFEST)
        wrong = [name for name in (WEIGHTS, MEMORY, COUNTERS) if manifest.get(name) != _facts(target / name)]
    except (LlamitaError, OSError) as error:
        return str(error)
    return f"{wrong[0]} is not what was written" if wrong else ""


def _latest(folder: Path) -> str | None:
    path = folder / LATEST
    return read_text(path).strip() if path.exists() else None


def _tensors(path: Path) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    return {name: file.load(name) for name in file.entries}


def _sweep(folder: Path, *, latest: str, keep: int) -> None:
    """Remove drafts and old checkpoints; one that cannot be removed does no harm."""
    names = sorted((path.name for path in folder.glob("step-*")), reverse=True)
    others = [name for name in names if _NAME.fullmatch(name) and name != latest]
    older = [name for name in others if name < latest][: keep - 1]
    for name in names:
        if name != latest and name not in older and (_NAME.fullmatch(name) or _DRAFT.fullmatch(name)):
            with suppress(OSError):
                shutil.rmtree(folder / name)
