"""One process per system; they take turns, so that drift of the machine affects all alike."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from time import sleep
from typing import Any, Protocol

from llamita.errors import LlamitaError

Run = Callable[[], float]  # runs once; returns the measured value
REST = 0.05  # seconds between turns, in which the threads of the last one stop spinning


class Measurable(Protocol):
    """A system that can be measured, turn by turn."""

    def measure(self, order: str) -> float:
        """Run once; returns the measured value."""
        ...


class Worker:
    """A process that holds a prepared run, and runs it on request."""

    def __init__(
        self, prepare: Callable[..., Run], arguments: tuple[Any, ...], threads: int, *, python: str | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", "llamita.bench.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(threads, python),
                stdout=subprocess.DEVNULL,
            )
        self._pipe = Connection(ours.detach())
        self._pipe.send((f"{prepare.__module__}:{prepare.__qualname__}", arguments))

    def measure(self, order: str) -> float:
        """Let it "run" (the run's value) or measure its "peak" (bytes of tensors above those of the model).

        Raises LlamitaError with the worker's message.
        """
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.wait()
            raise LlamitaError(f"the benchmark process died (exit code {code}): is there enough memory?") from None
        if isinstance(answer, str):
            raise LlamitaError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.wait()


class ProcessPerTurn:
    """Starts a new process for each turn."""

    def __init__(
        self, prepare: Callable[..., Run], arguments: tuple[Any, ...], threads: int, *, python: str | None = None
    ) -> None:
        self._rest = (prepare, arguments, threads)
        self._python = python

    def measure(self, order: str) -> float:
        """Start a process, measure one turn, end the process."""
        worker = Worker(*self._rest, python=self._python)
        try:
            return worker.measure(order)
        finally:
            worker.stop()


class Here:
    """Measures in this process."""

    def __init__(self, job: Run) -> None:
        self._job = job

    def measure(self, order: str) -> float:
        """Run once; returns the measured value."""
        return self._job()


def _environment(threads: int, python: str | None) -> dict[str, str]:
    """Environment of the worker: ours, with this thread count; another interpreter gets our package on its path."""
    paths = sys.path if python is None else [str(Path(__file__).parents[2])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "KINETO_LOG_LEVEL": "99",  # torch's profiler talks on stderr otherwise
    }


@contextmanager
def workers(
    prepare: Callable[..., Run], arguments: Mapping[str, tuple[Any, ...]], *, threads: int
) -> Iterator[dict[str, Worker]]:
    """A worker for each name, all ended on exit. `prepare` is a module's function, sent by name."""
    started: dict[str, Worker] = {}
    try:
        for name, values in arguments.items():
            started[name] = Worker(prepare, values, threads)
        yield started
    finally:
        for worker in started.values():
            worker.stop()


def in_turn(systems: Mapping[str, Measurable], repeats: int) -> dict[str, list[float]]:
    """The values of each system, turn by turn; the first turn does not count, and the order alternates."""
    values: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        for name in list(systems) if turn % 2 else reversed(list(systems)):
            sleep(REST)
            value = systems[name].measure("run")
            if turn:
                values[name].append(value)
    return values
