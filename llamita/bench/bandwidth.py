"""Memory bandwidth: the speed of the fastest of several kernels that only read."""

from collections.abc import Callable
from time import perf_counter

import numba
import numpy as np
import torch

from llamita.kernels.cpu import isa

isa.aim()  # Numba may compile this file's kernels before any other
NBYTES = 2**30  # of one pass; no cache is as large
CHUNK = 2**20  # bytes that a thread reads at a time
PASSES = 3  # of each kernel in a turn
CHUNKS_AT_ONCE = 8


@numba.njit(parallel=True, fastmath=True)
def _sum_floats(values: np.ndarray) -> float:  # fp32 (chunks, columns)
    totals = np.zeros(values.shape[0], np.float32)
    for chunk in numba.prange(values.shape[0]):
        total = np.float32(0)
        for column in range(values.shape[1]):
            total += values[chunk, column]
        totals[chunk] = total
    return totals.sum()


@numba.njit(parallel=True, fastmath=True)
def _sum_four_streams(values: np.ndarray) -> float:  # fp32 (chunks, columns)
    totals = np.zeros(values.shape[0], np.float32)
    quarter = values.shape[1] // 4
    for chunk in numba.prange(values.shape[0]):
        total = np.float32(0)
        for column in range(quarter):
            total += (
                values[chunk, column]
                + values[chunk, column + quarter]
                + values[chunk, column + 2 * quarter]
                + values[chunk, column + 3 * quarter]
            )
        totals[chunk] = total
    return totals.sum()


def _in_chunks(kernel: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    # A thread that is done takes the next chunks, so a slow thread does not delay the others.
    numba.set_parallel_chunksize(CHUNKS_AT_ONCE)
    return kernel(values.reshape(-1, CHUNK // values.itemsize))


KERNELS: dict[str, Callable[[np.ndarray], float]] = {
    "numba, one stream": lambda values: _in_chunks(_sum_floats, values),
    "numba, four streams": lambda values: _in_chunks(_sum_four_streams, values),
    "torch.sum": lambda values: float(torch.from_numpy(values).sum()),
}


def prepare(nbytes: int) -> Callable[[], float]:
    """Prepare a run that reads `nbytes` bytes with each kernel. It returns the fastest pass, in bytes per second."""
    values = values_of(nbytes)
    return lambda: max(speed(kernel, values) for kernel in KERNELS.values())


def values_of(nbytes: int) -> np.ndarray:
    """An fp32 array of `nbytes` bytes."""
    return np.ones(nbytes // 4, np.float32)


def use_threads(count: int) -> None:
    """Set the number of threads of this process, at most one per core."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    # After Numba: it starts its threads above, and may set OpenMP's count, which torch shares, to all cores.
    torch.set_num_threads(count)


def speed(kernel: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    """The speed of a kernel's fastest pass, in bytes per second."""
    best = 0.0
    for _ in range(PASSES):
        start = perf_counter()
        kernel(values)
        best = max(best, values.nbytes / (perf_counter() - start))
    return best
