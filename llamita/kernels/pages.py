"""Weights in large pages: what is read from end to end is read faster where its addresses are seldom looked up."""

import ctypes
import sys
from functools import cache

from torch import Tensor

LARGE = 1 << 21  # bytes of a large page
_PAGE = 4096
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1


def enlarge(tensor: Tensor) -> bool:
    """Move a tensor's memory into large pages, where the system can; its address and values stay. Whether it did."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    if end - start < LARGE or tensor.device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    return _advise()(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _COLLAPSE) == 0


@cache
def _advise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise
