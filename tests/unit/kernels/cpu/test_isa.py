"""The table of instruction sets, kernels for a lesser machine than the host, and names that are refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamita.errors import UnsupportedError, UsageError
from llamita.kernels.cpu import dot_bytes, isa, lookup
from llamita.kernels.cpu.runtime import code_cache, compiler
from llamita.kernels.cpu.runtime.machine_code import Code
from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

X86 = isa.host()[0].startswith("x86_64")
pytestmark = pytest.mark.skipif(not X86, reason="names processors of that kind")
RUNS_AVX2 = any(row.name == "AVX2" for row in isa.runnable())
HOST = {"sse2": True, "f16c": True, "avx2": True, "avx512f": False, "avx512vnni": False, "pku": False}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host of all tests: it has AVX2, and hides what a virtual machine may."""
    monkeypatch.setattr(isa, "_host_features", lambda: HOST)
    isa._features_of.cache_clear()
    yield
    isa._features_of.cache_clear()  # where LLAMITA_CPU is set, later tests ask for the real host's


def run(zygote: Zygote, script: str, **environment: str) -> str:
    """What a script prints in a process that has not looked at what machine this is, without settings of Numba's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    return result(zygote.start(script, kept | {"PYTHONPATH": str(ROOT)} | environment))


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


def test_the_command_line_says_so_in_a_sentence(zygote: Zygote) -> None:
    script = "from llamita.cli.main import main; print(main(['generate', '-n', '1']))"
    said = run(zygote, script, LLAMITA_CPU="nonsense")
    assert said.startswith("llamita: LLAMITA_CPU is 'nonsense'") and said.endswith("\n2") and said.count("\n") == 1


def test_numba_compiles_for_it(zygote: Zygote) -> None:
    script = (
        "from llamita.kernels.cpu import isa, simd; from llamita.kernels.cpu.runtime import program;"
        "assert program.named('runtime.worker', 'work')._compiled();"
        "assert simd.target() == isa.target(), simd.target(); print(simd.target()[1])"
    )
    assert run(zygote, script, LLAMITA_CPU="x86-64") == "x86-64"


def test_numba_compiles_for_the_processor_whatever_it_compiles_first(zygote: Zygote) -> None:
    """What Numba compiles first fixes what it compiles for; and it reads its settings anew when one has changed."""
    script = """
import os
from llamita.bench import bandwidth
from llamita.kernels.cpu import isa
from numba import config, njit
os.environ["NUMBA_OPT"] = "2"
njit(lambda x: x + 1)(1)
from llamita.kernels.cpu.compile_target import target
assert target()[1:] == isa.target()[1:]
print(config.CPU_NAME)
"""
    assert run(zygote, script, LLAMITA_CPU="x86-64-v2") == "x86-64-v2"


@pytest.mark.parametrize("row", isa.INSTRUCTION_SETS, ids=lambda row: row.name)
def test_every_row_names_ways_that_there_are(row: isa.InstructionSet) -> None:
    assert row.dot_u8s8 in dot_bytes.DOT_U8S8 and row.lookup in lookup.LOOKUPS
    assert row.fma in ("instruction", "the C library") and row.fp16 in ("instruction", "integers")
    assert row.dot_bf16 in ("fma", "vdpbf16ps.512")


@pytest.mark.parametrize(
    "row", [row for row in isa.INSTRUCTION_SETS if row.machine == "x86_64"], ids=lambda row: row.cpu
)
def test_the_processor_of_a_row_has_it_and_no_better_one(row: isa.InstructionSet) -> None:
    """As LLVM describes it, whatever the host has."""
    asked = sorted(set.union(*(set(each.needs) for each in isa.INSTRUCTION_SETS if each.machine == "x86_64")))
    features = ",".join(f"+{feature}" for feature in isa._which(row.cpu, asked))
    assert isa.fitting("x86_64-unknown-linux-gnu", row.cpu, features) is row


@pytest.mark.parametrize(
    ("triple", "features", "dot_u8s8"),
    [
        ("x86_64-apple-darwin", "+avx2,+f16c,+fma,+ssse3,-avxvnni", "vpmaddubsw.256"),
        ("x86_64-pc-windows-msvc", "+avx2,+f16c,+ssse3", "pmaddubsw.128"),  # a virtual machine that hides FMA
        ("x86_64-unknown-linux-gnu", "", "integers"),
        ("aarch64-unknown-linux-gnu", "+neon,+dotprod,+i8mm", "usdot.128"),
        ("aarch64-apple-darwin", "+neon,+dotprod,-i8mm", "sdot.128"),
        ("aarch64-unknown-linux-gnu", "+neon", "integers"),
        ("riscv64-unknown-linux-gnu", "+v", "integers"),
    ],
)
def test_the_first_row_that_fits_is_chosen(triple: str, features: str, dot_u8s8: str) -> None:
    assert isa.fitting(triple, "any", features).dot_u8s8 == dot_u8s8


def test_what_numbas_own_settings_ask_too_much_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not checked by Numba, and the first kernel would end the process."""
    isa.lacking.cache_clear()
    assert isa.lacking("x86-64-v4", "") == ["avx512f"]
    assert isa.lacking("x86-64-v4", "-avx512f,+prefer-256-bit") == isa.lacking("x86-64-v3", "") == []
    assert isa.lacking("x86-64", "+avx512vnni") == ["avx512vnni"]
    isa.lacking.cache_clear()
    monkeypatch.delenv("LLAMITA_CPU", raising=False)
    monkeypatch.setattr(compiler, "target", lambda: (isa.host()[0], "x86-64-v4", ""))
    with pytest.raises(
        UnsupportedError, match="compile for x86-64-v4, and this machine lacks its avx512f: unset"
    ) as error:
        compiler.compiled(lambda at: None)
    assert "\n" not in str(error.value)
    isa.lacking.cache_clear()


def test_kernels_kept_for_another_machine_are_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even from a folder that somebody copied or renamed."""
    monkeypatch.setattr(code_cache, "_folder", lambda: tmp_path)
    monkeypatch.setattr(code_cache, "_fingerprint", lambda: "a machine")
    code_cache.store("toy.add", Code(b"machine code", "entry", ()))
    assert code_cache.find("toy.add") == Code(b"machine code", "entry", ())
    monkeypatch.setattr(code_cache, "_fingerprint", lambda: "another")
    assert code_cache.find("toy.add") is None


# Operations that some machines have an instruction for and others have not, over any numbers: a digest of the bits.
SAME_BITS = """
import hashlib, torch
from llamita.kernels.cpu import isa, simd as v
from llamita.kernels.cpu.lookup import lookup
from llamita.kernels.cpu.runtime.program import Program, kernel

@kernel
def all_of_them(at: int, chunk: int) -> None:
    x, y, z = v.read(at) + 64 * chunk, v.read(at + 8) + 64 * chunk, v.read(at + 16) + 64 * chunk
    out = v.read(at + 24) + 352 * chunk
    fused = v.fma(v.load(x), v.load(y), v.load(z))
    v.store(out, fused)
    pairs = v.pack_bf16(v.load(x), v.load(z)), v.pack_bf16(v.load(y), v.load(x))
    v.store(out + 64, v.dot_bf16(v.load(z), pairs[0], pairs[1]))
    v.store_words(out + 128, v.dot_u8s8(v.load_words(z), v.load_words(x), v.load_words(y)))
    v.store_words(out + 192, lookup(v.extract_bits(v.load_words(x), 2, 0x0F0F0F0F), v.read(y), v.read(z)))
    v.store_fp16(out + 256, fused)
    v.store(out + 288, v.load_fp16(x))

torch.manual_seed(0)
x, y, z = (torch.randn(16_000) * 10.0 ** torch.randint(-24, 4, (16_000,)) for _ in range(3))
z[::2] = -(x * y)[::2]  # what is left is the error of the product
z[:8_000] *= 1e-20  # and denormals, which are 0
out, program = torch.zeros(88_000), Program()
program.add(all_of_them, [tensor.data_ptr() for tensor in (x, y, z, out)], chunks=1000)
program.run(1)
print(isa.chosen().name, hashlib.sha256(out.numpy().tobytes()).hexdigest(), sep=": ")
"""


def test_every_operation_gives_the_same_bits_with_an_instruction_and_without(zygote: Zygote) -> None:
    """This machine, and lesser ones: without FMA the C library's fmaf rounds once, too."""
    said = {}
    for name in ("", "x86-64-v2", "x86-64-v3") if RUNS_AVX2 else ("", "x86-64-v2"):
        said[name] = run(zygote, SAME_BITS, LLAMITA_CPU=name).partition(": ")
    assert said["x86-64-v2"][0] == "SSSE3"
    assert len({digest for _, _, digest in said.values()}) == 1, said


def test_matrix_tiles_are_used_only_where_the_system_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the host of all tests
    amx = {"avx2": True, "amx-tile": True, "amx-int8": True}
    monkeypatch.setattr(isa.llvm, "get_host_cpu_features", lambda: amx)
    for may_use in (True, False):
        monkeypatch.setattr(isa, "_may_use_matrix_tiles", lambda answer=may_use: answer)
        assert isa._host_features.__wrapped__() == {"avx2": True, "amx-tile": may_use, "amx-int8": may_use}
