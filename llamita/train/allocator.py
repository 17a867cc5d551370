"""The C library's allocator, set to keep what a training step frees: the next step asks for the same again."""

import ctypes
import sys
from contextlib import suppress

from torch.optim.optimizer import register_optimizer_step_post_hook

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3), glibc
LARGE = 1 << 20  # bytes of a tensor that has a mapping of its own in the first step


def keep_freed_memory_later() -> None:
    """Let freed tensors be used again from the end of the first step of an optimizer on.

    The optimizer's state, which stays, is made in that step. If it lay between tensors that come and go, these would
    not fit into the gaps in the next step: the process of a step of 110m had 900 MiB more than its tensors.
    """

    waiting = [True]

    def keep(*_: object) -> None:  # stays, and does nothing later: torch goes through its hooks while it calls them
        if waiting:
            waiting.clear()
            keep_freed_memory()

    _set(_MMAP_THRESHOLD, LARGE)
    register_optimizer_step_post_hook(keep)


def keep_freed_memory() -> bool:
    """Let freed tensors of this process be used again rather than given back; returns whether the C library can.

    By default glibc maps each large tensor again, and the system fills its pages with zeros as they are first touched.
    That took 15 % of a training step of 110m.
    """
    return _set(_MMAP_MAX, 0) and _set(_TRIM_THRESHOLD, 2**31 - 1)


def _set(parameter: int, value: int) -> bool:
    """Set a parameter of the C library's allocator; returns whether it has it."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library than glibc
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    return False
