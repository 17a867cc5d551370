"""Read a file header within its bounds."""

import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

from llamita.errors import BrokenFileError

MAX_HEADER = 100_000_000  # bytes before the tensors' data: Llama 3's vocabulary takes 7 million


class Cursor:
    """A reading position in the header, which cannot move past the end of the file."""

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        self.data, self.path = data, path
        self.position, self.size = 0, len(data)
        self.items = 0

    def skip(self, count: int, what: str) -> int:
        """Move over `count` bytes; returns where they begin."""
        start, stop = self.position, self.position + count
        if stop > self.size:
            left = self.size - start
            self.refuse(f"is truncated or damaged: {what} should take {count} bytes where {left} are left")
        if stop > MAX_HEADER:
            self.refuse(f"is damaged: its header does not end within {MAX_HEADER} bytes")
        self.position = stop
        return start

    def number(self, letter: str, what: str) -> Any:
        """A number in struct's notation."""
        return struct.unpack_from(f"<{letter}", self.data, self.skip(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str, limit: int = MAX_HEADER) -> str:
        """A string, its length before it."""
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            self.refuse(f"is damaged: {what} has {length} bytes, at most {limit} are allowed")
        start = self.skip(length, what)
        try:
            return self.data[start : self.position].decode()
        except UnicodeDecodeError:
            self.refuse(f"is damaged: {what} at byte {start} is not UTF-8")

    def refuse(self, why: str) -> NoReturn:
        """Say what is wrong with the file."""
        raise BrokenFileError(f"{self.path} {why}: download it again")
