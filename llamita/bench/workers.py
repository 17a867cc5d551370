"""One process per system, taking turns, so that drift of the machine hits all alike."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any

import torch

from llamita.errors import LlamitaError

Job = Callable[[], float]  # one turn; returns its seconds


class Worker:
    """A process that holds a prepared job and runs it when asked."""

    def __init__(self, prepare: Callable[..., Job], arguments: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # inherited: torch's profiler talks on stderr otherwise
        self._process = context.Process(target=_serve, args=(theirs, prepare, arguments, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, order: str) -> float:
        """Have it "run" (seconds) or measure its "peak" (bytes of tensors above the idle model).

        Raises LlamitaError with the worker's own words.
        """
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            code = self._process.exitcode
            raise LlamitaError(f"the benchmark process died (exit code {code}): is there enough memory?") from None
        if isinstance(answer, str):
            raise LlamitaError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


@contextmanager
def workers(
    prepare: Callable[..., Job], arguments: dict[str, tuple[Any, ...]], *, threads: int
) -> Iterator[dict[str, Worker]]:
    """A worker for each name, all ended at the end. `prepare` is a function of a module, as spawning needs."""
    started = {name: Worker(prepare, values, threads) for name, values in arguments.items()}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.stop()


def in_turn(systems: dict[str, Worker], repeats: int) -> dict[str, list[float]]:
    """The seconds of each system's turns, one of each not counted; who goes first changes from turn to turn."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        for name in systems if turn % 2 else reversed(systems):
            value = systems[name].ask("run")
            if turn:
                seconds[name].append(value)
    return seconds


def _serve(pipe: Connection, prepare: Callable[..., Job], arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        job = prepare(*arguments)
        while True:
            pipe.send(job() if pipe.recv() == "run" else peak_bytes(job))
    except (KeyboardInterrupt, EOFError):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def peak_bytes(job: Job) -> float:
    """The most bytes of tensors that the job holds at once, beyond those there before, counted by torch's profiler.

    Exact and repeatable, where resident memory also shows what malloc has kept back.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    results = profile.profiler and profile.profiler.kineto_results
    assert results is not None
    memory: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]
    return float(max(accumulate(changes), default=0))
