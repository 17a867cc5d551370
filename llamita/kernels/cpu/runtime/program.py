"""Programs: kernel calls that several threads work through together, with no Python between them.

A program is a table of numbers. A row has the address of a kernel, the number of its chunks, the row up to which the
rows above must be done before it begins, and its arguments (addresses and sizes). Every thread goes down the table and
claims one chunk of a row after another; when none is left, it waits for the chunks that other threads claimed. So the
program finishes with any number of threads, and a thread that the system suspends holds up no chunk but its own.

The result of a chunk does not depend on the thread that computes it: results are the same for any number of threads.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.errors import LlamitaError
from llamita.kernels.cpu.runtime.threads import Pace, launcher, pause

ROW = 128  # numbers in a row; a kilobyte
KERNEL, CHUNKS, FROM, ARGUMENTS = 0, 1, 2, 3
BYTES = 23  # bytes that a chunk reads of the first argument, if chunks read it in order; else 0
DONE = 24  # chunks done; on a cache line of its own, as all threads write to it
CLAIMED = 32  # chunks claimed of each part, eight numbers on
_MOST_ARGUMENTS = BYTES - ARGUMENTS
_MOST_PARTS = (ROW - CLAIMED) // 8
_PACKAGE = "llamita.kernels.cpu"

Inline = Any  # a function that is compiled into kernels


class Kernel:
    """A function of numbers; its machine code is loaded from disk, or compiled, when its address is first needed.

    function: None if its module is imported only to compile it, as that imports Numba.
    """

    def __init__(self, module: str, name: str, function: Callable[..., None] | None = None) -> None:
        self._module, self._name, self._function = module, name, function
        self._loaded: Any = None  # the code lives as long as it
        self._lock = Lock()
        self.__doc__ = function.__doc__ if function else Kernel.__doc__

    @property
    def address(self) -> int:
        """The address of its machine code."""
        with self._lock:
            if self._loaded is None:
                from llamita.kernels.cpu.runtime import (
                    machine_code,  # with it comes LLVM, which only who runs kernels needs
                )

                self._loaded = machine_code.Loaded(self._code())
        return self._loaded.address

    def _code(self) -> Any:
        """Its code, which is cached only for kernels of this folder: changes of other sources would go unnoticed."""
        _, is_own, module = self._module.partition(f"{_PACKAGE}.")
        if not is_own:
            return self._compiled()
        from llamita.kernels.cpu.runtime import code_cache

        return code_cache.find_or_make(f"{module}.{self._name}", self._compiled)

    def _compiled(self) -> Any:
        from llamita.kernels.cpu.runtime.compiler import compiled

        function = self._function or found(self._module, self._name)._function
        assert function is not None
        return compiled(function)


def kernel(function: Callable[[int, int], None] | Callable[[int], None], name: str = "", module: str = "") -> Kernel:
    """A kernel from `function(arguments, chunk)`; `arguments` is the address of a row's arguments, eight bytes each.

    Or from a function of one number, which is no row's but the threads'. name, module: where `found` finds the kernel
    of a function that was made by another, in the table KERNELS of that module.
    """
    return Kernel(module or function.__module__, name or function.__qualname__, function)


def found(module: str, name: str) -> Kernel:
    """The kernel of this name in a module, which is loaded: an entry of its table KERNELS, or a function of it."""
    loaded = import_module(module)
    return getattr(loaded, "KERNELS", {}).get(name) or getattr(loaded, name)


@cache
def named(module: str, name: str) -> Kernel:
    """The kernel of this name in a module of this folder, which is not loaded where its code is on disk."""
    return Kernel(f"{_PACKAGE}.{module}", name)


def inline(function: Callable[..., Any]) -> Any:
    """An inline function for kernels. It is always compiled into them, so it may take functions as arguments."""
    from llamita.kernels.cpu.runtime import compiler

    return compiler.inline(function)


_WORKER = named("runtime.worker", "work")


class Program:
    """Kernel calls in order, which can run many times.

    Tensors among a call's arguments become addresses; `keep` holds references to them as long as the program lives.
    """

    def __init__(self) -> None:
        self.keep: list[Any] = []
        self._rows = np.zeros((1, BYTES + 1), dtype=np.int64)  # of the table, without what threads count
        self._structs: list[Any] = [()]
        self._group = 1  # the first of the rows that nobody has waited for
        self._table: Tensor | None = None
        self._pace = Pace(1)

    def add(
        self,
        kernel: Kernel,
        arguments: Sequence[Tensor | int | None],
        *,
        chunks: int = 1,
        concurrent: bool = False,
        streams: int = 0,
    ) -> int:
        """Append a call; returns its number.

        arguments: a struct of `arguments`, or their values in order. None is 0: there is none, or `change` will set it.
        concurrent: the call may begin before the last one is done. streams: the bytes that a chunk reads of the first
        argument, if the chunks read it in order; a waiting thread prefetches its first.
        """
        assert len(arguments) <= _MOST_ARGUMENTS
        number = len(self._rows)
        row = [kernel.address, chunks, number if concurrent else self._group]
        for argument in arguments:
            if isinstance(argument, Tensor):
                self.keep.append(argument)
                row.append(argument.data_ptr())
            else:
                row.append(argument or 0)
        made = self._more(1)[0]
        made[: len(row)], made[BYTES] = row, streams
        self._structs.append(arguments)
        self._group = self._group if concurrent else number
        self._table = None
        return number

    def __len__(self) -> int:
        """How many calls there are, which is the number of the last."""
        return len(self._rows) - 1

    def repeat(self, calls: range, addresses: Sequence[int], others: Sequence[Sequence[int]]) -> range:
        """Append calls again that stand together, once for each of `others`: addresses in the place of these.

        They must end with a call that all before it are waited for. Returns how far each copy is from the first ones.
        The caller keeps what is at the addresses.
        """
        size, rows, given = len(calls), self._rows[calls.start : calls.stop], np.array(others)
        first = len(self._rows) - calls.start
        shifts = range(first, first + size * len(others), size)
        made = np.repeat(rows[None], len(others), axis=0)
        for address, instead in zip(addresses, given.T, strict=True):
            call, place = (rows[:, ARGUMENTS:BYTES] == address).nonzero()
            made[:, call, ARGUMENTS + place] = instead[:, None]
        # A call that waits for what is before these waits for the end of the copy before.
        before = [self._group, *range(len(self._rows) + size - 1, len(self._rows) + size * len(others) - 1, size)]
        waits = rows[:, FROM]
        made[:, :, FROM] = np.where(waits < calls.start, np.array(before)[:, None], waits + np.array(shifts)[:, None])
        self._more(size * len(others))[:] = made.reshape(-1, BYTES + 1)
        self._structs += self._structs[calls.start : calls.stop] * len(others)
        self._group = len(self._rows) - 1
        self._table = None
        return shifts

    def _more(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        size = len(self._rows)
        memory = self._rows if self._rows.base is None else self._rows.base
        if len(memory) < size + count:
            memory = np.zeros((max(2 * size, size + count), BYTES + 1), dtype=np.int64)
            memory[:size] = self._rows
        self._rows = memory[: size + count]
        return self._rows[size:]

    def change(self, number: int, *, chunks: int | None = None, **arguments: Tensor | int) -> None:
        """Change arguments of a call, by the names of its struct; the caller must keep tensors alive."""
        for name, argument in arguments.items():
            self.put(self.place(number, name), argument)
        if chunks is not None:
            self.resize([number], chunks)

    def change_each(self, numbers: Sequence[int], **arguments: Sequence[int] | int) -> None:
        """Change arguments of several calls of one struct: an address for each of them, or one for all."""
        for name, addresses in arguments.items():
            _, column = self.place(numbers[0], name)
            self._rows[numbers, column] = addresses
            if self._table is not None:
                self._numbers[numbers, column] = addresses

    def place(self, number: int, name: str) -> tuple[int, int]:
        """Where the argument of this name of a call stands, for `put`."""
        return number, ARGUMENTS + self._structs[number]._fields.index(name)

    def put(self, place: tuple[int, int], argument: Tensor | int) -> None:
        """Change the argument that stands at a place; the caller must keep a tensor alive."""
        value = argument if isinstance(argument, int) else argument.data_ptr()
        self._rows[place] = value
        if self._table is not None:
            self._numbers[place] = value

    def resize(self, numbers: Sequence[int], chunks: int) -> None:
        """Change the number of chunks of several calls."""
        self._rows[numbers, CHUNKS] = chunks
        if self._table is not None:
            self._numbers[numbers, CHUNKS] = chunks

    def replace(self, number: int, other: "Program", of: int) -> None:
        """Put another program's call in the place of one, which waits for the same; the caller keeps that program."""
        waits_for = self._rows[number, FROM]
        self._rows[number] = other._rows[of]
        self._rows[number, FROM] = waits_for
        self._structs[number] = other._structs[of]
        if self._table is not None:
            self._numbers[number, : BYTES + 1] = self._rows[number]

    def run(self, threads: int | None = None) -> None:
        """Make all calls. threads: None takes torch's number, or fewer where that is faster."""
        if self._table is None:
            # torch's memory begins on a cache line
            self._table = torch.zeros(len(self._rows), ROW, dtype=torch.int64, device="cpu")
            self._numbers = self._table.numpy()
            self._numbers[1:, : BYTES + 1] = self._rows[1:]
            self._numbers[0, :2] = len(self._rows) - 1, pause()
        pace = None if threads else self._paced(torch.get_num_threads())
        threads = threads or self._pace.threads
        parts = min(threads, _MOST_PARTS)
        self._numbers[0, 2] = parts
        self._numbers[:, DONE : CLAIMED + 8 * parts : 8] = 0
        start = perf_counter()
        launcher()(_WORKER.address, self._table.data_ptr(), threads)
        if pace is not None:
            pace.note(perf_counter() - start)

    def _paced(self, most: int) -> Pace | None:
        """The search for the number of threads, if there is a choice."""
        if self._pace.most != most:
            self._pace = Pace(most)
        return self._pace if most > 1 else None


def call(kernel: Kernel, arguments: Sequence[Tensor | int | None], *, chunks: int) -> None:
    """Run one kernel, as `Program.add` takes it."""
    program = Program()
    program.add(kernel, arguments, chunks=chunks)
    program.run()


def unsupported_reason() -> str | None:
    """The reason why this machine cannot run kernels, or None."""
    from llamita.kernels.cpu import isa  # with it comes LLVM

    try:
        # A processor that LLAMITA_CPU names is obeyed: it is for tests.
        if isa.named() is None and isa.chosen().fma != "instruction":
            return "its processor has no FMA instruction, so kernels would be slower than torch"
        return None if _WORKER.address else "its kernels have no address"
    except LlamitaError:  # of a processor that was asked for by name
        raise
    except Exception as error:  # Numba, LLVM and the system each have errors of their own
        return f"this machine cannot compile kernels ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
