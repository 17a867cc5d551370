"""What the functions of a block format are written with: the operations of `simd`, `unpack` and `repack_blocks`.

Numba is loaded when the first of them is asked for, which is when a kernel is compiled: to read or quantize blocks, or
to run kernels whose code is on disk, nobody needs it.
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
