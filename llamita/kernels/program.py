"""Programs: kernel calls that several threads work through together, with no Python between them.

A program is a table of numbers. A row names a kernel by its address, how many chunks its work falls into, from which
row on the rows above must be done before it begins, and its arguments (addresses and sizes). Every thread walks down
the table and claims chunk after chunk of a row; where nothing is left to claim it waits for the chunks that others
claimed. So any number of threads gets through, one alone too, and a thread that the system holds up is overtaken.

What a chunk computes does not depend on who computes it: the results are the same for any number of threads.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from types import FunctionType
from typing import Any

import numba
import torch
from numba import cfunc, njit, types
from numba.core.errors import NumbaError

from llamita.kernels import simd
from llamita.kernels.team import pause, team

_ROW = 128  # numbers in a row; a kilobyte
_KERNEL, _CHUNKS, _FROM, _ARGUMENTS = 0, 1, 2, 3
_DONE = 16  # chunks done; on a cache line of its own, as all threads write to it
_CLAIMED = 24  # chunks claimed of each part, eight numbers on
_MOST_ARGUMENTS = _DONE - _ARGUMENTS
_MOST_PARTS = (_ROW - _CLAIMED) // 8
_SPINS = 4096  # looks at a counter before the core is offered to others

_i64 = types.int64
_FOLDER = Lock()  # on Numba's setting of where it keeps things, which is one for all


class Kernel:
    """A function of two numbers that is compiled when its address is first asked for, and kept on disk."""

    def __init__(self, function: Callable[..., None], *kinds: Any) -> None:
        self._function = function
        self._kinds = kinds
        self._compiled: Any = None  # the code lives as long as it
        self._lock = Lock()
        self.__doc__ = function.__doc__

    @property
    def address(self) -> int:
        """Where its machine code begins."""
        with self._lock:
            if self._compiled is None:
                try:
                    self._compiled = self._compile(cached=True)
                except NumbaError:
                    raise
                except Exception:  # no place to write, a full disk, a file cut short: none is needed to compute
                    self._compiled = self._compile(cached=False)
        return self._compiled.address

    def _compile(self, *, cached: bool) -> Any:
        """Numba's compiled function, which has its file's place and its own name on disk.

        Numba looks only at that file to tell whether what it finds there is stale. So the name says what all were.
        """
        function = self._function
        named = FunctionType(function.__code__, function.__globals__, function.__name__)
        named.__qualname__ = f"{function.__qualname__}_{_fingerprint()}"
        with _keeping():
            return cfunc(types.void(*self._kinds), cache=cached, nogil=True, error_model="numpy")(named)


@contextmanager
def _keeping() -> Iterator[None]:
    """Let Numba keep what it compiles in the user's folder for such things, or in NUMBA_CACHE_DIR.

    Not beside the sources: files there that no installer knows of outlive the installation, and hide the next one.
    """
    with _FOLDER:
        before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
        numba.config.CACHE_DIR = before or str(_folder())  # type: ignore[attr-defined]
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


def _folder() -> Path:
    given = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(given or Path.home() / ".cache") / "llamita" / "kernels"


@cache
def _fingerprint() -> str:
    """Of all that kernels are made from, and of the machine that their code is for."""
    digest = hashlib.sha256(repr(simd.target()).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kernel(function: Callable[[int, int], None]) -> Kernel:
    """A kernel from `function(arguments, chunk)`; `arguments` is the address of a row's arguments, eight bytes each."""
    return Kernel(function, _i64, _i64)


def _work(table: int) -> None:
    """What one thread does. Row 0 holds the number of rows, how to offer the core to others, and the parts of a row.

    A thread has a part of each row's chunks for itself, one behind the other, so that it reads on where it was in
    memory; what others have left of theirs comes after.
    """
    rows, pause, parts = simd.read(table), simd.read(table + 8), simd.read(table + 16)
    mine = simd.claim(table + 8 * _CLAIMED)
    for i in range(1, rows + 1):
        row = table + i * 8 * _ROW
        for before in range(simd.read(row + 8 * _FROM), i):
            other = table + before * 8 * _ROW
            chunks, spins = simd.read(other + 8 * _CHUNKS), 0
            while simd.seen(other + 8 * _DONE) < chunks:
                spins += 1
                if spins == _SPINS:
                    simd.rest(pause)
                    spins = 0
        chunks, code = simd.read(row + 8 * _CHUNKS), simd.read(row + 8 * _KERNEL)
        for turn in range(parts):
            part = (mine + turn) % parts
            first, end = chunks * part // parts, chunks * (part + 1) // parts
            counter = row + 8 * (_CLAIMED + 8 * part)
            chunk = first + simd.claim(counter)
            while chunk < end:
                simd.call(code, row + 8 * _ARGUMENTS, chunk)
                simd.claim(row + 8 * _DONE)
                chunk = first + simd.claim(counter)


# A function that kernels are made of. It is always compiled into them: only then can a kernel whose parts take
# functions as arguments be kept on disk.
part = njit(forceinline=True, error_model="numpy")

_WORKER = Kernel(_work, _i64)


class Program:
    """Kernel calls in order, run as often as wanted.

    Tensors among a call's arguments become their addresses, and `keep` holds on to them for as long as the program is.
    """

    def __init__(self) -> None:
        self.keep: list[Any] = []
        self._rows: list[list[int]] = [[0] * _ROW]
        self._group = 1  # the first of the rows that nobody has waited for
        self._table: torch.Tensor | None = None

    def add(self, kernel: Kernel, *arguments: torch.Tensor | int | None, chunks: int = 1, beside: bool = False) -> int:
        """Put a call behind the others; one `beside` the last may begin before that is done. Returns its number.

        An argument of None is 0: there is none, or `change` will say.
        """
        assert len(arguments) <= _MOST_ARGUMENTS
        self.keep += [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        number = len(self._rows)
        row = [0] * _ROW
        row[_KERNEL], row[_CHUNKS], row[_FROM] = kernel.address, chunks, number if beside else self._group
        numbers = [x.data_ptr() if isinstance(x, torch.Tensor) else x or 0 for x in arguments]
        row[_ARGUMENTS : _ARGUMENTS + len(numbers)] = numbers
        self._rows.append(row)
        self._group = self._group if beside else number
        self._table = None
        return number

    def change(self, number: int, argument: int, value: int) -> None:
        """Give an argument of a call another value."""
        self._rows[number][_ARGUMENTS + argument] = value
        if self._table is not None:
            self._table[number, _ARGUMENTS + argument] = value

    def run(self, threads: int | None = None) -> None:
        """Make all calls; as many threads as torch uses, unless told."""
        if self._table is None:
            self._table = torch.tensor(self._rows)  # torch's memory begins on a cache line
            self._numbers = self._table.numpy()
            self._numbers[0, :2] = len(self._rows) - 1, pause()
        threads = threads or torch.get_num_threads()
        parts = min(threads, _MOST_PARTS)
        self._numbers[0, 2] = parts
        self._numbers[:, _DONE : _CLAIMED + 8 * parts : 8] = 0
        team()(_WORKER.address, self._table.data_ptr(), threads)


def why_not() -> str | None:
    """What keeps this machine from compiling kernels, or None."""
    try:
        return None if _WORKER.address else "its kernels have no address"
    except Exception as error:  # Numba, LLVM and the system each have errors of their own
        return f"this machine cannot compile kernels ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
