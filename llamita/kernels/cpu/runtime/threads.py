"""The threads that run kernels: torch's own, so that two pools never compete for the cores."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

Run = Callable[[int, int, int], object]  # (address of a function of one address, that address, number of threads)

SPAN = 0.02  # seconds that runs are watched before a decision: several turns of the system's scheduler
RUNS = 4  # runs that are watched at least
BETTER = 0.9  # of the mean time of a run, below which another number of threads is the better one
SHARE = 1 / 200  # of the time, which trials may lose
DEAR = 0.1  # seconds that a trial may lose before they are saved up
SLOWER = 1.5  # times the mean before, beyond which other processes came, and a trial of fewer threads is due


@cache
def launcher() -> Run:
    """A function that runs a native function on several threads at once, and returns when all are done.

    It uses torch's OpenMP runtime if that can be found, else Python's threads, which start more slowly.
    """
    for name in ("libgomp*", "libomp*", "libiomp*"):
        for path in sorted((Path(torch.__file__).parent / "lib").glob(name)):
            parallel = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
            if parallel is not None:
                return _openmp(parallel)
    return _python


def _openmp(parallel: "ctypes._NamedFuncPointer") -> Run:
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return lambda function, argument, threads: parallel(function, argument, threads, 0)


def _python(function: int, argument: int, threads: int) -> None:
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64)(function)  # lets go of the interpreter while it runs
    others = [_pool().submit(run, argument) for _ in range(threads - 1)]
    run(argument)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="llamita")


class Watch:
    """Runs of a program that are watched, and their mean time."""

    def __init__(self) -> None:
        self.runs, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """Take one more run into account."""
        self.runs += 1
        self.seconds += seconds

    @property
    def mean(self) -> float:
        """The mean seconds of a run."""
        return self.seconds / self.runs

    @property
    def is_over(self) -> bool:
        """Whether there were enough runs, for long enough, to decide."""
        return self.runs >= RUNS and self.seconds >= SPAN


class Pace:
    """Finds the fastest number of threads for a program while it runs.

    At the end of a run all threads wait for the last. If other processes use the cores, the system now and then
    suspends a thread for milliseconds, and fewer threads, or one, are faster. So other numbers are tried from time to
    time, one after the other. A trial ends when it has lost the time of a run. The next trial waits until that loss is
    less than `SHARE` of the time; a trial of fewer threads does not wait if runs have become slower. Where a run takes
    longer than `DEAR`, as that of a long prompt, the rest is saved up before.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.threads = most
        halves = {most >> shift for shift in range(1, most.bit_length())}
        self._others = sorted({max(1, most - 1), *halves} - {most}, reverse=True)  # the next to try is the first
        self._chosen = most
        self._mean = 0.0  # seconds of a run on the chosen number
        self._credit = 0.0  # seconds that trials may lose; below 0 none begins
        self._watch = Watch()

    def note(self, seconds: float) -> None:
        """Record the time of a run."""
        self._watch.add(seconds)
        if self.threads != self._chosen:
            self._credit -= seconds - self._mean
            if self._watch.is_over or self._credit < -self._mean:  # one run may be held up by chance
                self._end_trial()
        else:
            self._credit += SHARE * seconds
            if self._watch.is_over and self._others:
                self._begin_trial()

    def _begin_trial(self) -> None:
        """Run on another number of threads from now on, if trials have not lost too much."""
        mean, self._watch = self._watch.mean, Watch()
        before = self._mean or mean
        self._mean = (before + mean) / 2
        fewer = [number for number in self._others if number < self._chosen]
        due = self._others if self._credit >= max(0.0, mean - DEAR) else fewer if mean > SLOWER * before else []
        if due:
            self._credit = max(self._credit, 0.0)
            self.threads = due[0]

    def _end_trial(self) -> None:
        """Keep the number of threads that was tried if it is faster, else go back."""
        watch, self._watch, tried = self._watch, Watch(), self.threads
        self._others.remove(tried)
        if watch.is_over and watch.mean < BETTER * self._mean:
            self._others.append(self._chosen)
            self._chosen, self._mean, self._credit = tried, watch.mean, 0.0
        else:
            self._others.append(tried)
            self._credit = max(self._credit, -SPAN - self.most * self._mean)  # no more, if held up by chance
        self.threads = self._chosen


@cache
def pause() -> int:
    """The address of the system's function that lets another thread have the core."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
