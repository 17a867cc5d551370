"""Machine code of kernels in the user's folder for such things: who finds it there has no need of Numba.

Not beside the sources: files there that no installer knows of outlive the installation, and hide the next one.

A folder is for one state of the sources, one compiler and one kind of machine, as its name says; in it a kernel is a
file: a digest of all else, a line that names the entry and what it calls, and the object. The digest is over the names
of the folder and the kernel too, so no file is taken for another, nor one that is damaged for code.
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
    """The code of a kernel that is kept, or what `make` makes, which is then kept.

    Of processes that need a kernel at once one makes it, and the others wait for that.
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
    """The code of a kernel that is kept and runs here, or None."""
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
    """Keep a kernel's code where there is room; nothing is lost where there is none."""
    rest = " ".join((code.entry, *code.calls)).encode() + b"\n" + code.image
    try:
        _write(_made_folder() / name, _digest(name, rest) + rest)
    except (OSError, RuntimeError):
        return


def kept() -> tuple[Path | None, int]:
    """Where kernels of these sources for this machine are kept, None where there is no home, and how many are."""
    try:
        return _folder(), sum(path.suffix != ".lock" for path in _folder().iterdir())
    except FileNotFoundError:
        return _folder(), 0
    except (OSError, RuntimeError):
        return None, 0


@contextmanager
def _turn(name: str) -> Iterator[None]:
    """Be the one process that makes a kernel, or one that has waited long enough: a stopped one keeps its lock.

    The system lets go of the lock of a process that ends. Where there are no locks nobody waits.
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
    """Wait for a lock, and say whether it is ours now."""
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
    """All of a file or none of it, whoever else writes it."""
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
    """Remove what other sources and machines have left where nothing was added for a month."""
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
    """Of all that kernels are made from and by, and of the machine that their code is for."""
    elsewhere = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}  # the settings of Numba's that change no code
    if named() is not None:
        elsewhere |= {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"}  # made of `target`, once Numba is there
    settings = {name: x for name, x in os.environ.items() if name.startswith("NUMBA_") and name not in elsewhere}
    made_by = version("numba"), version("llvmlite"), sorted(settings.items())
    digest = hashlib.sha256(repr((target(), made_by)).encode())
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
