"""Kernels compiled by Numba, to machine code that runs without it."""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, njit, types

from llamita.kernels.machine import Code

part = njit(forceinline=True, error_model="numpy")


def compiled(function: Callable[..., None]) -> Code:
    """The machine code of a function of one or two integers, which is called as C's functions are."""
    body = part(function)
    # Around a body that is not a part, Numba looks after errors with functions of its own; so all of it is one.
    entries: list[Callable[..., None]] = [lambda table: body(table), lambda at, chunk: body(at, chunk)]
    count = function.__code__.co_argcount
    made: Any = cfunc(types.void(*[types.int64] * count), nogil=True, error_model="numpy")(entries[count - 1])
    module = llvm.parse_assembly(made.inspect_llvm())
    named = [*module.functions, *module.global_variables]
    calls = {value.name for value in named if value.is_declaration and not value.name.startswith("llvm.")}
    return Code(made._library._get_compiled_object(), made.native_name, tuple(sorted(calls)))
