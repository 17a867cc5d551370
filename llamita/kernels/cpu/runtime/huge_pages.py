"""Large pages for weights (transparent huge pages): reads are faster, as they need fewer page table lookups."""

import ctypes
import sys
from functools import cache

from torch import Tensor

LARGE = 1 << 21  # bytes of a large page
_PAGE = 4096
_FROM_NOW_ON = 14  # MADV_HUGEPAGE
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1


def collapse(tensor: Tensor) -> bool:
    """Move a tensor's memory into large pages; address and values stay. Returns whether the system did it."""
    return _tell(tensor, _COLLAPSE)


def advise(tensor: Tensor) -> bool:
    """Ask for large pages for a tensor before its first write. Returns whether the system will try.

    To allocate memory in small pages takes longer than to write to it.
    """
    return _tell(tensor, _FROM_NOW_ON)


def _tell(tensor: Tensor, advice: int) -> bool:
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    if end - start < LARGE or tensor.device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    return _advise()(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice) == 0


@cache
def _advise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise
