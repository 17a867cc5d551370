"""Load LLVM's machine code into memory. Needs no Numba."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from llamita.kernels.cpu.isa import initialize
from llamita.kernels.cpu.runtime.library_memory import release_pages


@dataclass(frozen=True)
class Code:
    """A kernel's object file, the name of its function, and the external functions that it calls."""

    image: bytes
    entry: str
    calls: tuple[str, ...]


def is_complete(code: Code) -> bool:
    """Whether this process has all functions that the code calls: LLVM aborts if one is missing."""
    _start()
    return all(llvm.address_of_symbol(name) for name in code.calls)


class Loaded:
    """Code in memory, as long as this object lives."""

    def __init__(self, code: Code) -> None:
        _start()
        self._engine = _engine()
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code.image))
        self._engine.finalize_object()
        self.address: int = self._engine.get_function_address(code.entry)
        release_pages(Path(llvm.__file__).parent)  # 50 MB, of which nothing is used until the next kernel is loaded


@cache
def _start() -> None:
    initialize()
    _engine()  # from the first on LLVM knows the functions of this process


def _engine() -> Any:
    """A linker for each kernel, so that names of kernels do not collide."""
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), target.create_target_machine(jit=True))
