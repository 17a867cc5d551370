"""The threads that run kernels: torch's own, so that two pools never compete for the cores."""

import ctypes
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

Run = Callable[[int, int, int], object]  # (address of a function of one address, that address, number of threads)

ROUND = 8  # runs whose mean is looked at; the first of them, which may have had to wake threads, is left out
UNEVEN = 1.5  # times the shortest run of a round, beyond which its mean says that threads are held up
BETTER = 0.9  # of the mean of a round, below which another number of threads is the better one
LONGEST = 128  # rounds between two trials of another number


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


class Pace:
    """Finds the fastest number of threads for a program while it runs.

    At the end of a run all threads wait for the last. If other processes use the cores, the system now and then
    suspends a thread for milliseconds, and fewer threads, or one, are faster. So after a round of runs with uneven
    times the next round uses fewer threads, and from time to time one uses more again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.threads = most
        halves = [most >> shift for shift in range(1, most.bit_length())]
        self._levels = sorted({most, max(1, most - 1), *halves}, reverse=True)
        self._level, self._tried = 0, 0
        self._mean = math.inf
        self._seconds: list[float] = []
        self._rounds, self._wait = 0, 1  # since the last trial, and until the next
        self._is_upward = False  # the next trial, where there may be either
        self._reach = 1  # levels down to the next trial of fewer; one more after each that was no better

    def note(self, seconds: float) -> None:
        """Record the time of a run."""
        self._seconds.append(seconds)
        if len(self._seconds) < ROUND:
            return
        counted, self._seconds = self._seconds[1:], []
        mean = sum(counted) / len(counted)
        if self._tried != self._level:
            self._judge(mean)
        else:
            self._mean = mean
            self._rounds += 1
            if self._rounds >= self._wait:
                self._try(is_uneven=mean > UNEVEN * min(counted))
        self.threads = self._levels[self._tried]

    def _judge(self, mean: float) -> None:
        """Keep the number that was tried, or go back and try again later."""
        if mean < BETTER * self._mean:
            self._level, self._mean, self._wait, self._reach = self._tried, mean, 1, 1
        else:
            self._reach += self._tried > self._level
            self._tried, self._wait = self._level, min(2 * self._wait, LONGEST)
        self._rounds = 0

    def _try(self, *, is_uneven: bool) -> None:
        """Run the next round on fewer threads, or on more."""
        can_fall, can_rise = is_uneven and self._level + 1 < len(self._levels), self._level > 0
        if can_rise and (self._is_upward or not can_fall):
            self._tried, self._is_upward = self._level - 1, False
        elif can_fall:
            below = len(self._levels) - 1 - self._level
            self._tried, self._is_upward = self._level + 1 + (self._reach - 1) % below, True


@cache
def pause() -> int:
    """The address of the system's function that lets another thread have the core."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
