"""Conversations in files: JSON with a list of messages, as chat APIs and training data have it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UsageError
from llamita.files.disk import explained, read_text, write_json

LARGEST = 64_000_000  # bytes, more than any conversation has


def save(path: Path, messages: Sequence[dict[str, str]], *, model: str, force: bool = False) -> None:
    """Write a conversation, whole or not at all. With force it may replace a file that holds something else.

    Raises UsageError for such a file without force, NotFoundError for a missing folder, and the disk's errors.
    """
    with explained("write", path):
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent}: make it first, or choose another")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file: choose another name")
        if path.exists() and not force and not _goes_on(path, messages):
            raise UsageError(
                f"{path} exists and holds something else: choose another name, or write /save {path} --force"
            )
    write_json(path, {"model": model, "messages": list(messages)})


def _goes_on(path: Path, messages: Sequence[dict[str, str]]) -> bool:
    """Whether these messages begin with all that the file holds."""
    try:
        saved, content = load(path), json.loads(read_text(path))
    except LlamitaError:
        return False
    extra = content.keys() - {"model", "messages"} if isinstance(content, dict) else ()
    return not extra and list(messages[: len(saved)]) == saved


def load(path: Path) -> list[dict[str, str]]:
    """The messages in a file: an object that has them, or their list alone.

    Raises NotFoundError, AccessError, or BrokenFileError, which says what is wrong with the file.
    """
    with explained("read", path):
        if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST):
            raise BrokenFileError(f"{path} is no conversation: name a file that /save wrote")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # the ValueErrors of our own, for bytes that are no text, too
        raise BrokenFileError(f"{path} is not valid JSON: name a file that /save wrote") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise BrokenFileError(f"{path} has no list of messages: name a file that /save wrote")
    return [_checked(message, number, path) for number, message in enumerate(messages)]


def _checked(message: Any, number: int, path: Path) -> dict[str, str]:
    roles = ("user", "assistant") if number else ("system", "user", "assistant")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise BrokenFileError(f"message {number + 1} in {path} has no text: each needs a role and a content")
    if message.get("role") not in roles:
        raise BrokenFileError(
            f"message {number + 1} in {path} has the role {message.get('role')!r}: it must be {' or '.join(roles)}"
        )
    return {"role": message["role"], "content": message["content"]}
