"""What is given back of a library's memory: what nobody wrote to, and nothing else."""

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from llamita.kernels.cpu.runtime.library_memory import release_pages

SIZE = 1 << 20


def resident(path: Path) -> int:
    """KB in memory of all mappings of a file."""
    about = re.findall(rf" {re.escape(str(path))}\n(?:Size|.*PageSize).*\n(?:[A-Z].*\n)*?Rss: +(\d+)", smaps())
    return sum(map(int, about))


def smaps() -> str:
    """What the system says of this process's memory."""
    return Path("/proc/self/smaps").read_text(encoding="utf-8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells of memory")
def test_what_was_written_to_stays_and_the_rest_goes_until_it_is_read(tmp_path: Path) -> None:
    of, beside = tmp_path / "its", tmp_path / "its own"
    read_only, writable = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
    maps = {}
    for folder in (of, beside):
        folder.mkdir()
        for name, access in {"code": read_only, "locked": writable, "data": writable}.items():
            path = folder / name
            path.write_bytes(b"a" * SIZE)
            with path.open("r+b") as file:
                room = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=access)
            assert room[:] == b"a" * SIZE
            maps[path] = room
            if name != "code":
                room[100:103] = b"bcd"  # as the linker puts addresses into what it then locks
            if name == "locked":
                start = ctypes.addressof(ctypes.c_char.from_buffer(room))
                assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(SIZE), read_only) == 0
    release_pages(of)
    assert {path.name: resident(path) for path in maps if path.parent == of} == {
        "code": 0,
        "locked": 1024,
        "data": 1024,
    }
    assert all(resident(path) == 1024 for path in maps if path.parent == beside)
    for path, room in maps.items():
        assert room[:] == (b"a" * SIZE if path.name == "code" else b"a" * 100 + b"bcd" + b"a" * (SIZE - 103))
    assert resident(of / "code") == 1024
    release_pages(of)
    assert resident(of / "code") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells of memory")
@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_other_systems_keep_what_they_have(platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(b"a" * SIZE)
    with (tmp_path / "code").open("rb") as file:
        room = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert room[:] == b"a" * SIZE
    monkeypatch.setattr(sys, "platform", platform)
    release_pages(tmp_path)
    monkeypatch.undo()
    assert resident(tmp_path / "code") == (0 if platform == "linux" else 1024)
