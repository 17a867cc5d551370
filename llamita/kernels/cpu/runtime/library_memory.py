"""Release the file-backed pages of LLVM after a kernel is loaded (madvise): its start touches many, and uses few."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

_UNNEEDED = 4  # MADV_DONTNEED


def release_pages(folder: Path) -> None:
    """Release the pages that are mapped from a folder's files and unchanged; the next access maps them again.

    It does nothing on systems other than Linux.
    """
    for start, size in _unwritten(folder):
        _advise()(ctypes.c_void_p(start), ctypes.c_size_t(size), _UNNEEDED)


@cache
def _unwritten(folder: Path) -> list[tuple[int, int]]:
    """Addresses and sizes of read-only mappings without changed pages: the linker may have written to some before."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        mappings = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system without this file
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
