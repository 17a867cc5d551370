"""Kernels for a lesser machine than the host: which features it has, and names that are refused."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llamita.errors import UnsupportedError, UsageError
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.runtime import code_cache

X86 = isa.host()[0].startswith("x86_64")
pytestmark = pytest.mark.skipif(not X86, reason="names processors of that kind")
HOST = {"sse2": True, "f16c": True, "avx2": True, "avx512f": False, "avx512vnni": False, "pku": False}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host of all tests: it has AVX2, and hides what a virtual machine may."""
    monkeypatch.setattr(isa, "_host_features", lambda: HOST)
    isa._features_of.cache_clear()
    yield
    isa._features_of.cache_clear()  # where LLAMITA_CPU is set, later tests ask for the real host's


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("x86-64", "+sse2"),
        ("x86-64-v2", "+sse2"),
        ("x86-64-v3", "+avx2,+f16c,+sse2"),
        ("haswell", "+avx2,+f16c,+sse2"),
        ("znver3", "+avx2,+f16c,-pku,+sse2"),
        (" x86-64 ", "+sse2"),
    ],
)
def test_a_lesser_machine_has_what_llvm_says(name: str, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_CPU", name)
    assert isa.target() == (isa.host()[0], name.strip(), features)


@pytest.mark.parametrize("name", ["", "native", "host"])
def test_without_a_name_it_is_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_CPU", name)
    assert isa.target() == isa.host()
    assert isa.host()[2] == "+avx2,-avx512f,-avx512vnni,+f16c,-pku,+sse2"


@pytest.mark.parametrize("name", ["x86-64-v4", "znver4", "skylake-avx512"])
def test_a_machine_that_can_more_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_CPU", name)
    with pytest.raises(UnsupportedError, match=f"LLAMITA_CPU is '{name}', and this machine lacks its avx512f"):
        isa.target()


@pytest.mark.parametrize("name", ["nonsense", "pentium4", "help", "x86-64-v3,+avx512f", '" }', "neoverse-n1"])
def test_a_name_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_CPU", name)
    with pytest.raises(UsageError, match="no 64-bit processor that LLVM knows here: give one of x86-64,"):
        isa.target()


def test_code_for_one_machine_is_not_found_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = set()
    for name in ("", "x86-64", "x86-64-v3"):
        monkeypatch.setenv("LLAMITA_CPU", name)
        prints.add(code_cache._fingerprint.__wrapped__())
    assert len(prints) == 3


def test_the_command_line_says_so_in_a_sentence() -> None:
    command = [sys.executable, "-m", "llamita", "generate", "-n", "1"]
    environment = os.environ | {"LLAMITA_CPU": "nonsense"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llamita: LLAMITA_CPU is 'nonsense'") and done.stderr.count("\n") == 1


def test_numba_compiles_for_it() -> None:
    script = (
        "from llamita.kernels.cpu import isa, simd; from llamita.kernels.cpu.runtime import program;"
        "assert program.named('runtime.worker', 'work')._compiled();"
        "assert simd.target() == isa.target(), simd.target(); print(simd.target()[1])"
    )
    environment = os.environ | {"LLAMITA_CPU": "x86-64"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "x86-64\n", done.stderr


def test_numba_compiles_for_the_processor_whatever_it_compiles_first() -> None:
    """What Numba compiles first fixes what it compiles for; and it reads its settings anew when one has changed."""
    script = """
import os
from llamita.bench import bandwidth
from llamita.kernels.cpu import isa
from numba import config, njit
os.environ["NUMBA_OPT"] = "2"
njit(lambda x: x + 1)(1)
from llamita.kernels.cpu.runtime import compiler
assert compiler.cpu_target.target_context.codegen().magic_tuple()[1:] == isa.target()[1:]
print(config.CPU_NAME)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    command, environment = [sys.executable, "-c", script], kept | {"LLAMITA_CPU": "x86-64-v2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "x86-64-v2"), done.stderr
