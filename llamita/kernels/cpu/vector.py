"""The operations of `simd`, `unpack` and `repack_blocks`, for the functions of a block format.

Numba is imported when the first of them is used, which is when a kernel is compiled. To read or quantize blocks, or to
run kernels whose code is on disk, it is not needed.
"""

from importlib import import_module
from typing import Any

HOMES = tuple(f"llamita.kernels.cpu.{name}" for name in ("simd", "unpack", "repack_blocks"))


def __getattr__(name: str) -> Any:
    for home in HOMES if not name.startswith("_") else ():
        module = import_module(home)
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"there is no operation {name}")
