"""The output of a batch: one line for each answer, appended at once, so that a killed run can be resumed."""

import json
import os
import stat
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from llamita.checks import parsed_json
from llamita.errors import AccessError, UsageError
from llamita.files.disk import explained
from llamita.server.batch.input import ID_PREFIX

try:
    import fcntl
except ImportError:  # Windows: there, nothing keeps two processes from one output
    fcntl = None

SYNC_EVERY = 1.0  # seconds
BEGINNING = f'{{"id": "{ID_PREFIX}'.encode()  # of every line


def output_line(id: str, custom_id: str | None, *, response: Any = None, error: Any = None) -> bytes:
    """A line as OpenAI's batches have it."""
    fields = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(fields).encode() + b"\n"


def has_failed(fields: dict[str, Any]) -> bool:
    """Whether the answer on a line is an error."""
    response = fields.get("response")
    return not isinstance(response, dict) or response.get("status_code") != 200


@dataclass
class Done:
    """What an output has already: the ids of its lines, how many are errors, and who wrote the others."""

    ids: set[str] = field(default_factory=set)
    failed: int = 0
    fingerprints: set[str] = field(default_factory=set)

    def add(self, fields: dict[str, Any]) -> None:
        """Count a line."""
        self.ids.add(fields["id"])
        self.failed += has_failed(fields)
        body = (fields.get("response") or {}).get("body")
        if isinstance(body, dict) and isinstance(fingerprint := body.get("system_fingerprint"), str):
            self.fingerprints.add(fingerprint)


class BatchOutput:
    """A file or a stream that lines are appended to: each is written at once, and synced to the disk every second."""

    def __init__(self, file: BinaryIO, path: Path, done: Done | None = None, *, is_on_disk: bool = False) -> None:
        """is_on_disk: the file can be synced, and another run can resume it."""
        self._file, self.path, self.is_on_disk = file, path, is_on_disk
        self.done = Done() if done is None else done
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, ids: Collection[str], *, is_new: bool = False) -> Self:
        """The output at a path, locked, with what it has of these ids.

        is_new: what it has is removed. Raises UsageError where it has lines of other requests, AccessError where
        another process has the lock, and what the file system refuses.
        """
        with explained("write", path):
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            with explained("write", path):
                _lock(file, path)
                is_on_disk = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                done = Done() if is_new or not is_on_disk else _read(file, path, ids)
                if is_on_disk:
                    file.truncate(0 if is_new else file.tell())
            return cls(file, path, done, is_on_disk=is_on_disk)
        except BaseException:
            file.close()
            raise

    def write(self, line: bytes) -> None:
        """Add a line. Raises LlamitaError where the disk is full; what was written before stays."""
        with explained("write", self.path):
            rest = memoryview(line)
            while rest:  # a file without a buffer may take a part
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        self.done.add(json.loads(line))
        if time.monotonic() - self._synced > SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Have all lines on the disk."""
        if self.is_on_disk:
            with explained("write", self.path):
                os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, and let go of the file and its lock; stdout stays open."""
        try:
            self.sync()
        finally:
            if self._file is not getattr(sys.stdout, "buffer", None):
                self._file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Take the file for this process, until it is closed or the process ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AccessError(f"{path} is being written by another process: wait for it, or name another output") from None


def _read(file: BinaryIO, path: Path, ids: Collection[str]) -> Done:
    """What a file has, positioned after its last whole line. Raises UsageError for lines of other requests."""
    done, end = Done(), 0
    file.seek(0)
    with os.fdopen(os.dup(file.fileno()), "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and line.startswith(BEGINNING[: len(line)]):
                break  # the process was killed while it wrote this one
            done.add(_known(line, ids) or _foreign(path, number))
            end += len(line)
    file.seek(end)
    return done


def _known(line: bytes, ids: Collection[str]) -> dict[str, Any] | None:
    """The fields of a line that answers one of these requests, None for any other."""
    try:
        fields = parsed_json(line.decode())
    except ValueError:
        return None
    is_known = isinstance(fields, dict) and isinstance(fields.get("id"), str) and fields["id"] in ids
    return fields if is_known and line.endswith(b"\n") else None


def _foreign(path: Path, number: int) -> NoReturn:
    raise UsageError(
        f"line {number} of {path} answers no request of this input: name another output, or replace this one by --force"
    )
