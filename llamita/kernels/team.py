"""The threads that kernels run on: torch's own, so that two pools never fight for the cores."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

Run = Callable[[int, int, int], object]  # (address of a function of one address, that address, number of threads)


@cache
def team() -> Run:
    """What calls a function on so many threads at once and comes back when all have.

    The OpenMP runtime that came with torch where it can be found, else threads of Python's, which start more slowly.
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


@cache
def pause() -> int:
    """The address of the system's function that lets another thread have the core."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
