"""Memory bandwidth: the fastest of some kernels that only read."""

from collections.abc import Callable
from time import perf_counter

import numba
import numpy as np
import torch

from llamita.kernels.cpu import isa

isa.aim()  # this file's kernels may be the first that Numba compiles
NBYTES = 2**30  # read in a pass, far more than fits the caches
PIECE = 2**20  # bytes that a thread takes at a time
PASSES = 3  # of each kernel in a turn
PIECES_AT_ONCE = 8


@numba.njit(parallel=True, fastmath=True)
def _sum_floats(values: np.ndarray) -> float:  # fp32 (pieces, columns)
    totals = np.zeros(values.shape[0], np.float32)
    for piece in numba.prange(values.shape[0]):
        total = np.float32(0)
        for column in range(values.shape[1]):
            total += values[piece, column]
        totals[piece] = total
    return totals.sum()


@numba.njit(parallel=True, fastmath=True)
def _sum_four_streams(values: np.ndarray) -> float:  # fp32 (pieces, columns)
    totals = np.zeros(values.shape[0], np.float32)
    quarter = values.shape[1] // 4
    for piece in numba.prange(values.shape[0]):
        total = np.float32(0)
        for column in range(quarter):
            total += (
                values[piece, column]
                + values[piece, column + quarter]
                + values[piece, column + 2 * quarter]
                + values[piece, column + 3 * quarter]
            )
        totals[piece] = total
    return totals.sum()


def _in_pieces(kernel: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    # Threads take pieces as they finish, so that a slow thread delays no other.
    numba.set_parallel_chunksize(PIECES_AT_ONCE)
    return kernel(values.reshape(-1, PIECE // values.itemsize))


KERNELS: dict[str, Callable[[np.ndarray], float]] = {
    "numba, one stream": lambda values: _in_pieces(_sum_floats, values),
    "numba, four streams": lambda values: _in_pieces(_sum_four_streams, values),
    "torch.sum": lambda values: float(torch.from_numpy(values).sum()),
}


def prepare(nbytes: int) -> Callable[[], float]:
    """A run that reads this many bytes by each kernel; its value is the fastest pass, in bytes a second."""
    values = values_of(nbytes)
    return lambda: max(speed(kernel, values) for kernel in KERNELS.values())


def values_of(nbytes: int) -> np.ndarray:
    """An fp32 array of this many bytes, to be read."""
    return np.ones(nbytes // 4, np.float32)


def use_threads(count: int) -> None:
    """Set the threads of this process, at most one a core."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    # Last, for Numba starts its threads there, and may set OpenMP's number of them, which is torch's too, to all cores.
    torch.set_num_threads(count)


def speed(kernel: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    """Bytes a second of the fastest pass of a kernel."""
    best = 0.0
    for _ in range(PASSES):
        start = perf_counter()
        kernel(values)
        best = max(best, values.nbytes / (perf_counter() - start))
    return best
