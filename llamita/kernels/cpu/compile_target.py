"""The machine that Numba compiles for in this process, by LLAMITA_CPU or by Numba's own settings."""

from typing import Any

from numba.core.registry import cpu_target

from llamita.kernels.cpu import isa

isa.aim()  # before Numba looks at what machine this is, which it does once


def target() -> tuple[str, str, str]:
    """LLVM's triple, the processor, its features."""
    context: Any = cpu_target.target_context
    return context.codegen().magic_tuple()


def instructions() -> isa.InstructionSet:
    """The row of the table for that."""
    return isa.fitting(*target())
