"""Compile kernels with Numba, to machine code that runs without it."""

import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core.callconv import CPUCallConv
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.cpu import CPUContext
from numba.core.typed_passes import NativeLowering

from llamita.errors import UnsupportedError
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.compile_target import target
from llamita.kernels.cpu.pieces import call_intrinsic
from llamita.kernels.cpu.runtime.machine_code import Code


class _NoErrors(CPUCallConv):
    """Numba's calling convention for functions that report no error: where they would, the process ends.

    Nobody would read it, and code that reports it calls Numba, so each process would have to compile it again.
    """

    def return_user_exc(self, builder: Any, *_: Any, **__: Any) -> None:
        """An error that LLVM may find impossible: an index beyond a tuple, a range with a step of 0."""
        call_intrinsic(builder, "llvm.trap", ir.VoidType())
        builder.unreachable()

    def return_status_propagate(self, builder: Any, status: Any) -> None:
        """An error of a function that was called."""
        self.return_user_exc(builder)


class _Context(CPUContext):
    """What functions are lowered with: Numba's, with that convention."""

    @property
    def call_conv(self) -> CPUCallConv:
        """The convention."""
        return _NoErrors(self)


class _Library(JITCodeLibrary):
    """LLVM's code of a kernel, optimized once, as by -O2, when all that it calls is part of it.

    Numba optimizes each function by -O3 before that, which copies loops for every case in them: four times the machine
    code and twice the time to compile, for the same speed (benchmarks/kernels.md). Vectors are in the source already.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager(opt=2, loop_vectorize=False, slp_vectorize=False)
        passes.run(self._final_module, builder)


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Numba's last pass, with that convention."""

    _name = "lowering_without_errors"
    library: type[JITCodeLibrary] = _Library

    def run_pass(self, state: Any) -> Any:
        """Lower a function."""
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        # A copy, with functions of Numba's own apart: those that others compile report their errors as ever.
        state.targetctx = state.targetctx.subtarget(cached_internal_func={})
        state.targetctx.__class__ = _Context
        return super().run_pass(state)


class _Inlined(_Library):
    """LLVM's code of an inline function: only the kernels that it goes into are optimized, and become machine code.

    Numba does both for every function, which takes most of the time of compiling a kernel.
    """

    @property
    def codegen(self) -> Any:
        """What is given the place of the environment of Numba: nothing, as only machine code has one."""
        return self

    def set_env(self, *_: Any) -> None:
        """Nothing."""

    def get_pointer_to_function(self, name: str) -> int:
        """No address; Numba has none either for a function without wrappers."""
        self._ensure_finalized()
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringToInline(_Lowering):
    """The same, whose result is `_Inlined`."""

    _name = "lowering_to_inline"
    library = _Inlined


class _Compiler(CompilerBase):
    """Numba's compiler, of kernels."""

    lowering: type[_Lowering] = _Lowering

    def define_pipelines(self) -> list[PassManager]:
        """The passes."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        ours = PassManager(passes.pipeline_name)
        for each, text in passes.passes:
            ours.add_pass(self.lowering if each is NativeLowering else each, text)
        ours.finalize()
        return [ours]


class _InlineCompiler(_Compiler):
    """The same, of inline functions."""

    lowering = _LoweringToInline


# Without wrappers for Python and C: nobody calls them, and each would be one more copy for LLVM to compile.
inline = njit(  # pyright: ignore[reportCallIssue] - Numba's types leave these options out
    forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True,
    pipeline_class=_InlineCompiler,
)  # fmt: skip


def compiled(function: Callable[..., None]) -> Code:
    """The machine code of a function of one or two integers, with C's calling convention."""
    _check_target()
    form = types.void(*[types.int64] * function.__code__.co_argcount)
    made: Any = cfunc(form, nogil=True, error_model="numpy", pipeline_class=_Compiler)(function)
    module = llvm.parse_assembly(made.inspect_llvm())
    names = {value.name for value in (*module.functions, *module.global_variables) if value.is_declaration}
    calls = {name for name in names if not name.startswith("llvm.")}
    # LLVM turns some of its math operations into calls of the C library's function of that name, if there is one.
    found = [re.fullmatch(r"llvm\.(\w+)\.(?:v\d+)?f(32|64)", name) for name in names - calls]
    likely = {operation[1] + "f" * (operation[2] == "32") for operation in found if operation}
    calls |= {name for name in likely if llvm.address_of_symbol(name)}
    return Code(made._library._get_compiled_object(), made.native_name, tuple(sorted(calls)))


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
