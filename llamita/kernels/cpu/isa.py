"""Which processor kernels are compiled for: this machine's, or a lesser one that LLAMITA_CPU names. Needs no Numba."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache

import llvmlite.binding as llvm

from llamita.errors import UnsupportedError, UsageError

VARIABLE = "LLAMITA_CPU"
LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
# What no compiler writes unless it is told to, so that a virtual machine may well hide it.
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
    """What kernels are compiled for, in the same words.

    Raises UsageError for a name that LLVM does not know, UnsupportedError for a processor that can more than this one.
    """
    name = named()
    return host() if name is None else (llvm.get_process_triple(), name, _features_of(name))


@cache
def has(feature: str) -> bool:
    """Whether the code that is made may use what LLVM calls by this name."""
    return f"+{feature}" in target()[2].split(",")


def named() -> str | None:
    """The processor that LLAMITA_CPU names, or None where that is this machine's own."""
    name = os.environ.get(VARIABLE, "").strip()
    return name if name not in ("", "native", "host") else None


def runs(name: str) -> bool:
    """Whether this machine has all that a processor of this name has."""
    try:
        _features_of(name)
    except UnsupportedError:
        return False
    return True


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
    has = _which(name, list(here))
    lacking = [feature for feature in has if not here[feature]]
    if needed := [feature for feature in lacking if feature not in UNUSED and not feature.startswith("amx")]:
        raise UnsupportedError(
            f"{VARIABLE} is {name!r}, and this machine lacks its {', '.join(needed)}: name a lesser one, or unset it"
        )
    return _spelled({feature: here[feature] for feature in has})


def _host_features() -> dict[str, bool]:
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # not every system tells
        return {}


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
