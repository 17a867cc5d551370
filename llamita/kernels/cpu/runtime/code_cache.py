"""On-disk cache of compiled kernels, in the user's cache folder; a hit avoids importing Numba.

It is not in the folder of the sources: no installer knows such files, so they would stay there after an uninstall and
hide the next installation.

A folder is for one state of the sources, one compiler and one kind of machine; its name is a hash of these. A kernel is
a file: a digest of the rest, a line with the entry and the functions it calls, and the object file. The digest includes
the names of the folder and the kernel, so a damaged or misplaced file is never run.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

from llamita.kernels.cpu.isa import named, target
from llamita.kernels.cpu.runtime.machine_code import Code, is_complete

_DIGEST = hashlib.sha256().digest_size
_MONTH = 30 * 24 * 3600.0
_LONGEST, _PAUSE = 30.0, 0.05  # seconds that a process waits for another's kernel, and between two looks


def find_or_make(name: str, make: Callable[[], Code]) -> Code:
    """The cached code of a kernel; without it, the code that `make` compiles, which is then cached.

    If several processes need a kernel at once, one compiles it and the others wait.
    """
    code = find(name)
    if code is None:
        with _turn(name):
            code = find(name)
            if code is None:
                code = make()
                store(name, code)
    return code


def find(name: str) -> Code | None:
    """The cached code of a kernel, if all functions that it calls are here, or None."""
    try:
        data = (_folder() / name).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    digest, rest = data[:_DIGEST], data[_DIGEST:]
    if digest != _digest(name, rest):
        return None
    words, _, image = rest.partition(b"\n")
    entry, *calls = words.decode().split(" ")
    code = Code(image, entry, tuple(calls))
    return code if is_complete(code) else None


def store(name: str, code: Code) -> None:
    """Cache a kernel's code; a full or missing disk is no error."""
    rest = " ".join((code.entry, *code.calls)).encode() + b"\n" + code.image
    try:
        _write(_made_folder() / name, _digest(name, rest) + rest)
    except (OSError, RuntimeError):
        return


def contents() -> tuple[Path | None, int]:
    """The cache folder of these sources and this machine, or None without a home folder, and its number of kernels."""
    try:
        return _folder(), sum(path.suffix != ".lock" for path in _folder().iterdir())
    except FileNotFoundError:
        return _folder(), 0
    except (OSError, RuntimeError):
        return None, 0


@contextmanager
def _turn(name: str) -> Iterator[None]:
    """Wait until no other process compiles this kernel, or for `_LONGEST`: a stopped process keeps its lock.

    The system frees the lock of a process that ends. Without file locks nobody waits.
    """
    try:
        lock = (_made_folder() / f"{name}.lock").open("ab")
    except (OSError, RuntimeError):
        yield
        return
    with lock:
        is_ours = _is_locked(lock)
        try:
            yield
        finally:
            if is_ours:
                Path(lock.name).unlink(missing_ok=True)


def _is_locked(lock: IO[bytes]) -> bool:
    """Wait for a lock; returns whether we have it."""
    end = time.monotonic() + _LONGEST
    while fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE)
        except OSError:  # a file system without locks
            return False
    return False


def _made_folder() -> Path:
    folder = _folder()
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
    return folder


def _write(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, even if other processes write it too."""
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        whole = Path(file.name)
        try:
            file.write(data)
            file.close()  # some systems move no open file
            whole.replace(path)
        except BaseException:
            file.close()
            whole.unlink(missing_ok=True)
            raise


def _tidy(folder: Path) -> None:
    """Remove folders of other sources and machines that got no new kernel for a month."""
    for other in folder.parent.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > _MONTH:
            shutil.rmtree(other, ignore_errors=True)


def _digest(name: str, rest: bytes) -> bytes:
    return hashlib.sha256(f"{_fingerprint()}/{name}\n".encode() + rest).digest()


def _folder() -> Path:
    given = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    given = os.environ.get("NUMBA_CACHE_DIR") or given
    return Path(given or Path.home() / ".cache") / "llamita" / "kernels" / _fingerprint()


@cache
def _fingerprint() -> str:
    """A hash of the kernels' sources, of the compiler and its settings, and of the machine."""
    elsewhere = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}  # the settings of Numba's that change no code
    if named() is not None:
        elsewhere |= {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"}  # made of `target`, once Numba is there
    settings = {name: x for name, x in os.environ.items() if name.startswith("NUMBA_") and name not in elsewhere}
    made_by = version("numba"), version("llvmlite"), sorted(settings.items())
    digest = hashlib.sha256(repr((target(), made_by)).encode())
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
