"""Kernels compiled by Numba, to machine code that runs without it."""

import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, njit, types

from llamita.errors import UnsupportedError
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.compile_target import target
from llamita.kernels.cpu.runtime.machine_code import Code

# Without what Python or C would call them by: they are never called, and each wrapper is a copy that LLVM works on.
inline = njit(  # pyright: ignore[reportCallIssue] - Numba's types leave two options out
    forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


def compiled(function: Callable[..., None]) -> Code:
    """The machine code of a function of one or two integers, which is called as C's functions are."""
    _check_target()
    count = function.__code__.co_argcount
    code = _code(function, count)
    if not any(name.startswith(("numba_", "Py")) for name in code.calls):
        return code
    # LLVM did not see that no error can happen, and Numba would report it. Where the body is a part it does see that,
    # but takes a fifth longer for it.
    body = inline(function)
    entries: list[Callable[..., None]] = [lambda table: body(table), lambda at, chunk: body(at, chunk)]
    return _code(entries[count - 1], count)


def _check_target() -> None:
    """Raise UnsupportedError where Numba compiles for another machine than LLAMITA_CPU's, or one that can more."""
    _, cpu, features = target()
    if isa.named() is not None and (cpu, features) != isa.target()[1:]:
        raise UnsupportedError(
            f"{isa.VARIABLE} comes too late, as Numba compiles for {cpu} in this process: set it before Numba compiles "
            "anything, or unset it"
        )
    if lacking := isa.lacking(cpu, features):
        raise UnsupportedError(
            f"Numba's own settings have it compile for {cpu}, and this machine lacks its {', '.join(lacking)}: unset "
            f"NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, and name a lesser machine by {isa.VARIABLE}"
        )


def _code(function: Callable[..., None], count: int) -> Code:
    made: Any = cfunc(types.void(*[types.int64] * count), nogil=True, error_model="numpy")(function)
    module = llvm.parse_assembly(made.inspect_llvm())
    names = {value.name for value in (*module.functions, *module.global_variables) if value.is_declaration}
    calls = {name for name in names if not name.startswith("llvm.")}
    # Of LLVM's operations on numbers some become calls of the C library's function of that name, if it has one.
    found = [re.fullmatch(r"llvm\.(\w+)\.(?:v\d+)?f(32|64)", name) for name in names - calls]
    likely = {operation[1] + "f" * (operation[2] == "32") for operation in found if operation}
    calls |= {name for name in likely if llvm.address_of_symbol(name)}
    return Code(made._library._get_compiled_object(), made.native_name, tuple(sorted(calls)))
