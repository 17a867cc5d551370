"""One process per system. They take turns, so a change of the machine's speed affects all equally."""

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

Run = Callable[[], float]  # runs once and returns the measured value
PAUSE = 0.05  # seconds between turns, so that the last one's threads stop spinning


class RunFailedError(LlamitaError):
    """A system could not be measured."""

    def __init__(self, name: str, reason: LlamitaError) -> None:
        super().__init__(f"{name} was not measured: {reason}")
        self.name = name


class Measurable(Protocol):
    """A system that can take turns."""

    def measure(self, order: str) -> float:
        """Run once and return the measured value."""
        ...


class Worker:
    """A process that prepares a run and runs it on each request."""

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
        """Order a "run" (returns its value) or a "peak" (returns the peak bytes of tensors that a run allocates).

        Raises LlamitaError with the worker's message.
        """
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.wait()
            raise LlamitaError(
                f"the benchmark process ended with exit code {code}: check that there is enough memory"
            ) from None
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
        self._arguments = (prepare, arguments, threads)
        self._python = python

    def measure(self, order: str) -> float:
        """Start a process, measure one turn, end the process."""
        worker = Worker(*self._arguments, python=self._python)
        try:
            return worker.measure(order)
        finally:
            worker.stop()


class InProcess:
    """Runs in this process."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def measure(self, order: str) -> float:
        """Run once and return the measured value."""
        return self._run()


def _environment(threads: int, python: str | None) -> dict[str, str]:
    """The worker's environment: ours, with this number of threads. Another interpreter gets only our package's path."""
    paths = sys.path if python is None else [str(Path(__file__).parents[2])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "KINETO_LOG_LEVEL": "99",  # or torch's profiler prints to stderr
    }


@contextmanager
def workers(
    prepare: Callable[..., Run], arguments: Mapping[str, tuple[Any, ...]], *, threads: int
) -> Iterator[dict[str, Worker]]:
    """Start a worker for each name, and stop all on exit. `prepare` is a function of a module; its name is sent."""
    started: dict[str, Worker] = {}
    try:
        for name, values in arguments.items():
            started[name] = Worker(prepare, values, threads)
        yield started
    finally:
        for worker in started.values():
            worker.stop()


def in_turn(systems: Mapping[str, Measurable], repeats: int) -> dict[str, list[float]]:
    """Run the systems in turns and return the values of each. The first turn is not counted; the order alternates.

    Raises RunFailedError, which names the system.
    """
    values: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        for name in list(systems) if turn % 2 else reversed(list(systems)):
            sleep(PAUSE)
            try:
                value = systems[name].measure("run")
            except LlamitaError as error:
                raise RunFailedError(name, error) from error
            if turn:
                values[name].append(value)
    return values
