"""A checkpoint while it is written: a folder under another name, which is synced, renamed, and only then the latest."""

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from llamita.errors import LlamitaError
from llamita.files.disk import creating, explained, read_json, read_text, sync_folder, write_text

COUNTERS, MANIFEST, LATEST = "state.json", "manifest.json", "latest"
NAME = re.compile(r"step-\d{8}")
_DRAFT = re.compile(r"step-\d{8}\.draft-[0-9a-f]{8}")
Facts = Mapping[str, Any]  # size and sha256 of a file


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written. folder: the draft's. counters: of the run when the save began.

    target: what the folder will be called. keep: how many of the newest checkpoints stay.
    """

    folder: Path
    target: Path
    counters: Mapping[str, Any]
    keep: int

    @contextmanager
    def written(self) -> Iterator[None]:
        """Remove the draft if the block fails, and say in one sentence what the file system refused."""
        try:
            with explained("write", self.target):
                yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def publish(self, files: Mapping[str, Facts]) -> None:
        """Write counters and manifest, give the folder its name, make it the latest, and remove old checkpoints.

        files: the facts of all that has been written and synced, by name.
        """
        self._write_json(COUNTERS, self.counters)
        self._write_json(MANIFEST, {**files, COUNTERS: facts(self.folder / COUNTERS)})
        sync_folder(self.folder)
        shutil.rmtree(self.target, ignore_errors=True)  # of a run that died before it named this one the latest
        self.folder.rename(self.target)
        sync_folder(self.target.parent)
        write_text(self.target.parent / LATEST, self.target.name + "\n")
        _sweep(self.target.parent, latest=self.target.name, keep=self.keep)

    def _write_json(self, name: str, value: Any) -> None:
        with creating(self.folder / name, self.target / name) as file:
            file.write(json.dumps(value, indent=2).encode())


def begun(target: Path, counters: Mapping[str, Any], *, keep: int) -> Draft:
    """An empty draft of a checkpoint."""
    draft = Draft(target.with_name(f"{target.name}.draft-{secrets.token_hex(4)}"), target, counters, keep)
    with explained("write", target):
        draft.folder.mkdir(parents=True)
    return draft


def facts(path: Path) -> Facts:
    """The size and the sha256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def damage(target: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if nothing is."""
    try:
        manifest = read_json(target / MANIFEST)
        wrong = [name for name in {COUNTERS, *manifest} if manifest.get(name) != facts(target / name)]
    except (LlamitaError, OSError) as error:
        return str(error)
    return f"{wrong[0]} is not what was written" if wrong else ""


def latest(folder: Path) -> str | None:
    """The name of the checkpoint that was published last."""
    path = folder / LATEST
    return read_text(path).strip() if path.exists() else None


def _sweep(folder: Path, *, latest: str, keep: int) -> None:
    """Remove drafts and old checkpoints; one that cannot be removed does no harm."""
    names = sorted((path.name for path in folder.glob("step-*")), reverse=True)
    others = [name for name in names if NAME.fullmatch(name) and name != latest]
    older = [name for name in others if name < latest][: keep - 1]
    for name in names:
        if name != latest and name not in older and (NAME.fullmatch(name) or _DRAFT.fullmatch(name)):
            with suppress(OSError):
                shutil.rmtree(folder / name)
