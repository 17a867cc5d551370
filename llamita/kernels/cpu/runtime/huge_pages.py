"""Large pages for weights (transparent huge pages): reads are faster, as they need fewer page table lookups."""

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache

from torch import Tensor

LARGE = 1 << 21  # bytes of a large page
_PAGE = 4096
_FROM_NOW_ON = 14  # MADV_HUGEPAGE
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1


def collapse(tensors: Iterable[Tensor]) -> int:
    """Move the memory of tensors into large pages; addresses and values stay. Returns how many the system made.

    Tensors that lie side by side share large pages, also with other memory of the process: at least half of each is
    theirs.
    """
    covered: Counter[int] = Counter()  # bytes of each large page
    for tensor in filter(_is_here, tensors):
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for page in range(start // LARGE * LARGE, end, LARGE):
            covered[page] += min(end, page + LARGE) - max(start, page)
    return sum(_tell(page, LARGE, _COLLAPSE) for page, size in covered.items() if size >= LARGE // 2)


def advise(tensor: Tensor) -> bool:
    """Ask for large pages for a tensor before its first write. Returns whether the system will try.

    To allocate memory in small pages takes longer than to write to it.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    return end - start >= LARGE and _is_here(tensor) and _tell(start, end - start, _FROM_NOW_ON)


def _is_here(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory that Linux takes advice on."""
    return tensor.device.type == "cpu" and sys.platform.startswith("linux")


def _tell(start: int, size: int, advice: int) -> bool:
    return _advise()(ctypes.c_void_p(start), ctypes.c_size_t(size), advice) == 0


@cache
def _advise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise
