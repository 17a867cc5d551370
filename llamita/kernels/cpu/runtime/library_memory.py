"""Memory of a library that has done its work: its start touches much more of it than is ever used."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

_UNNEEDED = 4  # MADV_DONTNEED


def release_pages(folder: Path) -> None:
    """Let go of what is mapped from a folder's files, but for what was written to; what is used again is mapped again.

    Linux alone is asked; elsewhere nothing happens.
    """
    for start, size in _unwritten(folder):
        _advise()(ctypes.c_void_p(start), ctypes.c_size_t(size), _UNNEEDED)


@cache
def _unwritten(folder: Path) -> list[tuple[int, int]]:
    """Addresses and sizes of mappings that nobody can write to and nobody has: the linker may, before it locks them."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        mappings = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system that does not tell
        return []
    pattern = rf"^(\w+)-(\w+) r-.p .* {re.escape(str(folder))}/.*\n((?:[A-Z]\w+:.*\n)+)"
    return [
        (int(start, 16), int(end, 16) - int(start, 16))
        for start, end, about in re.findall(pattern, mappings, re.MULTILINE)
        if re.search(r"^Anonymous: +0 kB", about, re.MULTILINE) and re.search(r"^Swap: +0 kB", about, re.MULTILINE)
    ]


@cache
def _advise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise
