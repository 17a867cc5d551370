"""Instruction sets: the one that kernels are compiled for, and the version of each operation for it. Needs no Numba.

It is this machine's, or a lesser one that LLAMITA_CPU names. Results are the same on all of them.
"""

import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

import llvmlite.binding as llvm

from llamita.errors import UnsupportedError, UsageError

VARIABLE = "LLAMITA_CPU"
LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
# Features that no compiler uses unasked, so a virtual machine may hide them without harm.
UNUSED = {
    "cldemote", "clflushopt", "clwb", "clzero", "enqcmd", "fsgsbase", "fxsr", "hreset", "invpcid", "kl", "lwp",
    "movdir64b", "movdiri", "mwaitx", "pconfig", "pku", "prefetchi", "prfchw", "ptwrite", "rdpid", "rdpru",
    "rdrnd", "rdseed", "rtm", "sahf", "serialize", "sgx", "shstk", "tsxldtrk", "uintr", "usermsr", "waitpkg",
    "wbnoinvd", "widekl", "xsave", "xsavec", "xsaveopt", "xsaves",
}  # fmt: skip
# LLVM prints or ends the process where it does not know a name: so another process asks.
SCRIPT = """
import sys, llvmlite.binding as llvm
try:
    llvm.initialize()
except RuntimeError:
    pass
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu=sys.argv[1], features="")
target.emit_assembly(llvm.parse_assembly("define void @f() { ret void }"))
"""


@dataclass(frozen=True, kw_only=True)
class InstructionSet:
    """A row of the table: an instruction set, and the version of each operation that depends on it.

    cpu: a processor of LLVM's that has this and little more, which LLAMITA_CPU may name. needs: LLVM's features.
    Ways are named after the instruction that matters, those in LLVM's own terms after what they are made of.
    tiles: how many tiles of sixteen rows a GEMM of blocks multiplies at once, so that its sums stay in registers.
    matrix_tiles: whether there are registers for tiles of a matrix.
    """

    name: str
    cpu: str
    machine: str = "x86_64"  # what LLVM's triple begins with
    needs: frozenset[str] = field(default=frozenset())
    dot_u8s8: str = "integers"
    dot_bf16: str = "fma"
    fma: str = "instruction"
    fp16: str = "instruction"
    lookup: str = "comparisons"
    tiles: int = 1
    matrix_tiles: bool = False

    @property
    def ways(self) -> dict[str, str]:
        """The way of each operation."""
        return {name: getattr(self, name) for name in ("dot_u8s8", "dot_bf16", "fma", "fp16", "lookup")}


_V2 = frozenset({"ssse3"})
_V3 = _V2 | {"avx2", "f16c", "fma"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512vl"}
# The first row that a machine can run is chosen. The last row of an architecture needs no features.
INSTRUCTION_SETS = (
    InstructionSet(
        name="AVX-512 with VNNI and bf16, and AMX", cpu="sapphirerapids",
        needs=_V4 | {"avx512vnni", "avx512bf16", "amx-tile", "amx-int8"},
        dot_u8s8="vpdpbusd.512", dot_bf16="vdpbf16ps.512", lookup="vpshufb.512", tiles=2, matrix_tiles=True,
    ),
    InstructionSet(
        name="AVX-512 with VNNI and bf16", cpu="cooperlake", needs=_V4 | {"avx512vnni", "avx512bf16"},
        dot_u8s8="vpdpbusd.512", dot_bf16="vdpbf16ps.512", lookup="vpshufb.512", tiles=2,
    ),
    InstructionSet(
        name="AVX-512 with VNNI", cpu="cascadelake", needs=_V4 | {"avx512vnni"},
        dot_u8s8="vpdpbusd.512", lookup="vpshufb.512", tiles=2,
    ),
    InstructionSet(
        name="AVX-512", cpu="x86-64-v4", needs=_V4, dot_u8s8="vpmaddubsw.512", lookup="vpshufb.512",
    ),
    InstructionSet(
        name="AVX2 with AVX-VNNI", cpu="alderlake", needs=_V3 | {"avxvnni"},
        dot_u8s8="vpdpbusd.256", lookup="vpshufb.256",
    ),
    InstructionSet(name="AVX2", cpu="x86-64-v3", needs=_V3, dot_u8s8="vpmaddubsw.256", lookup="vpshufb.256"),
    InstructionSet(
        name="SSSE3", cpu="x86-64-v2", needs=_V2, dot_u8s8="pmaddubsw.128", fma="the C library", fp16="integers",
        lookup="pshufb.128",
    ),
    InstructionSet(name="SSE2", cpu="x86-64", fma="the C library", fp16="integers"),
    InstructionSet(
        name="NEON with i8mm", cpu="neoverse-v1", machine="aarch64", needs=frozenset({"neon", "dotprod", "i8mm"}),
        dot_u8s8="usdot.128",
    ),
    InstructionSet(
        name="NEON with dotprod", cpu="neoverse-n1", machine="aarch64", needs=frozenset({"neon", "dotprod"}),
        dot_u8s8="sdot.128",
    ),
    InstructionSet(name="NEON", cpu="generic", machine="aarch64"),
    InstructionSet(name="unknown", cpu="generic", machine=""),
)  # fmt: skip


def chosen() -> InstructionSet:
    """The row for what kernels are compiled for; raises what `target` raises."""
    return fitting(*target())


def fitting(triple: str, cpu: str, features: str) -> InstructionSet:
    """The first row of the table that a machine, in LLVM's terms, can run."""
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    rows = (row for row in INSTRUCTION_SETS if triple.startswith(row.machine) and row.needs <= has)
    return next(rows)


def runnable() -> list[InstructionSet]:
    """The rows that this machine can run, the best first."""
    triple, _, features = host()
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return [row for row in INSTRUCTION_SETS if triple.startswith(row.machine or "?") and row.needs <= has]


@cache
def initialize() -> None:
    """Let LLVM know this kind of machine."""
    with suppress(RuntimeError):  # LLVM's older bindings want this, newer ones refuse it
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def host() -> tuple[str, str, str]:
    """This machine: LLVM's triple, the processor, its features."""
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), _spelled(_host_features())


def target() -> tuple[str, str, str]:
    """The machine that kernels are compiled for, in the same terms.

    Raises UsageError for a name that LLVM does not know, UnsupportedError for a processor that can more than this one.
    """
    name = named()
    return host() if name is None else (llvm.get_process_triple(), name, _features_of(name))


@cache
def has(feature: str) -> bool:
    """Whether compiled code may use LLVM's feature of this name."""
    return f"+{feature}" in target()[2].split(",")


def named() -> str | None:
    """The processor that LLAMITA_CPU names, or None where that is this machine's own."""
    name = os.environ.get(VARIABLE, "").strip()
    return name if name not in ("", "native", "host") else None


def aim() -> None:
    """Have Numba compile for the processor that LLAMITA_CPU names."""
    if named() is None:
        return
    from numba.core import config

    # In the environment too: Numba reads its settings from there again whenever any of them has changed.
    _, os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = target()
    config.reload_config()  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _features_of(name: str) -> str:
    """The features of a processor that this machine has too; those without which no code suffers may be missing."""
    is_level = name in LEVELS and llvm.get_process_triple().startswith("x86_64")
    if not is_level and not _is_known(name):
        raise UsageError(
            f"{VARIABLE} is {name[:60]!r}, which is no 64-bit processor that LLVM knows here: give one of "
            f"{', '.join(LEVELS)}, a name of LLVM's such as znver3 or neoverse-n1, or unset it"
        )
    here = _host_features()
    if needed := _lacking(has := _which(name, list(here))):
        raise UnsupportedError(
            f"{VARIABLE} is {name!r}, and this machine lacks its {', '.join(needed)}: name a lesser one, or unset it"
        )
    return _spelled({feature: here[feature] for feature in has})


@cache
def lacking(cpu: str, features: str) -> list[str]:
    """The features that this machine lacks of one of LLVM's processors, with features on (+) and off (-)."""
    if (cpu, features) == host()[1:]:
        return []
    switched = {feature[1:]: feature[0] == "+" for feature in features.split(",") if feature}
    has = dict.fromkeys(_which(cpu, list(_host_features())), True) | switched
    return _lacking([feature for feature, is_on in has.items() if is_on])


def _lacking(features: list[str]) -> list[str]:
    """Those features that this machine lacks and that compiled code uses."""
    here = _host_features()
    missing = [
        feature for feature in features if not here.get(feature, True)
    ]  # what it does not list is no instruction
    return [feature for feature in missing if feature not in UNUSED and not feature.startswith("amx")]


@cache
def _host_features() -> dict[str, bool]:
    try:
        features = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # not every system tells
        return {}
    if features.get("amx-tile") and not _may_use_matrix_tiles():
        features |= {name: False for name in features if name.startswith("amx")}
    return features


def _may_use_matrix_tiles() -> bool:
    """Ask Linux to let all threads of this process use AMX, which it else answers with a signal."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # of x86-64, see arch/x86/include/uapi/asm/prctl.h
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def _spelled(features: dict[str, bool]) -> str:
    return ",".join(f"{'+' if features[feature] else '-'}{feature}" for feature in sorted(features))


def _is_known(name: str) -> bool:
    command = [sys.executable, "-c", SCRIPT, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode == 0 and "not a recognized" not in done.stderr and name != "help"


def _which(name: str, features: list[str]) -> list[str]:
    """Those features that a processor has: LLVM puts a function that needs one only into callers that have it."""
    triple, base = llvm.get_process_triple(), "x86-64" if llvm.get_process_triple().startswith("x86_64") else "generic"
    lines = [f'target triple = "{triple}"']
    for i, feature in enumerate(features):
        needs, has = f'"target-cpu"="{base}" "target-features"="+{feature}"', f'"target-cpu"="{name}"'
        lines.append(f"define void @inner{i}(ptr %p) {needs} {{ store i32 {i}, ptr %p ret void }}")
        lines.append(f"define void @outer{i}(ptr %p) {has} {{ call void @inner{i}(ptr %p) ret void }}")
    initialize()
    module = llvm.parse_assembly("\n".join(lines))
    machine = llvm.Target.from_triple(triple).create_target_machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    text = str(module)
    return [feature for i, feature in enumerate(features) if f"call void @inner{i}(" not in text]
