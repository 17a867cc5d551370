"""The C library's allocator, set to keep what a training step frees: the next step asks for the same again."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), glibc


def keep_freed_memory() -> bool:
    """Let freed tensors of this process be used again rather than given back; returns whether the C library can.

    By default glibc maps each large tensor again, and the system fills its pages with zeros as they are first touched.
    That took 15 % of a training step of 110m.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return False
