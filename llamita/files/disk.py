"""Text and JSON files, read with clear errors and written whole or not at all; loads no torch."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llamita.checks import parsed_json, quoted
from llamita.errors import AccessError, BrokenFileError, LlamitaError, MemoryShortError, NotFoundError, UsageError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence; `action` is a verb: "read", "write"."""
    try:
        yield
    except LlamitaError:
        raise
    except FileNotFoundError as error:
        what = "it" if action == "read" else f"the folder {path.parent}"
        raise NotFoundError(f"cannot {action} {path}: {what} does not exist") from error
    except PermissionError as error:
        raise AccessError(f"cannot {action} {path}: permission denied, check its owner and mode") from error
    except IsADirectoryError as error:
        raise UsageError(f"cannot {action} {path}: it is a folder, name a file") from error
    except NotADirectoryError as error:
        raise UsageError(f"cannot {action} {path}: a folder of this path is a file, name another path") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LlamitaError(f"cannot {action} {path}: the disk is full, free some space and try again") from error
        if error.errno == errno.EFBIG:
            why = "it is larger than the file system or a limit (ulimit -f) allows, write elsewhere or raise that"
            raise LlamitaError(f"cannot {action} {path}: {why}") from error
        if error.errno == errno.ENOMEM:
            raise MemoryShortError(f"cannot {action} {path}: too little memory, close other programs") from error
        reason = error.strerror or str(error)
        raise LlamitaError(f"cannot {action} {path}: {reason[:1].lower()}{reason[1:]}") from error


def named_path(name: str | Path) -> Path:
    """The path that somebody names, ~ being a home; one of a user who is not here stays as it is, as in a shell.

    Raises UsageError for what can be no path.
    """
    if not isinstance(name, str | os.PathLike):
        raise UsageError(f"{quoted(name)} is a {type(name).__name__}, and no name of a file: give text or a Path")
    if "\0" in str(name):
        raise UsageError(f"{quoted(str(name))} is no path, as it has a zero byte: check the name")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises NotFoundError, AccessError or BrokenFileError."""
    with explained("read", path):
        data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise BrokenFileError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path} is not UTF-8 text (byte {error.start}): convert or download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFoundError, AccessError or BrokenFileError."""
    text = read_text(path)
    try:
        value = parsed_json(text)
    except ValueError as error:
        what = "empty" if not text.strip() else f"not valid JSON ({error})"
        raise BrokenFileError(f"{path} is {what}: download or write it again") from error
    if not isinstance(value, dict):
        raise BrokenFileError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole: a reader sees the old one or the new one, never a part."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path` that replaces it when the block ends, and is deleted if the block fails."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with creating(draft, path) as file:
            yield file
        with explained("write", path):
            draft.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


@contextmanager
def creating(path: Path, meant: Path | None = None) -> Iterator[BinaryIO]:
    """A new file, synced to the disk when the block ends; errors name the file `meant`."""
    with explained("write", meant or path), path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the renames in a folder to the disk, where the system can sync folders (Windows cannot)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
