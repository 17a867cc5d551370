"""What is kept of compiled kernels: never stale or damaged, run without Numba, kept where there is room, not needed."""

import ast
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

import llamita.kernels
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import simd
from llamita.kernels.cpu.constants import DTYPES
from llamita.kernels.cpu.runtime import code_cache
from llamita.kernels.cpu.runtime.machine_code import Code
from llamita.kernels.cpu.runtime.program import Kernel, found
from tests.zygote import Zygote, result

X86 = "x86_64" in simd.target()[0]
SOURCES = Path(llamita.kernels.__file__).parent
Start = Callable[..., int]  # of a script and changes to its environment; what `result` reads

# Prints what a kernel adds up of two numbers, behind another's zero, and whether anything had to be compiled.
SCRIPT = """
import ctypes, sys, torch
from kernels_under_test.cpu.runtime.program import named
x, out = torch.tensor([3.0, 4.0]), torch.ones(1)
arguments = torch.tensor([x.data_ptr(), out.data_ptr()])
for name in ("clear", "add"):
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(named("toy", name).address)(arguments.data_ptr(), 0)
print(out.item(), "compiled" if "numba" in sys.modules else "found")
"""
TOY = """
import math
from kernels_under_test.cpu import simd as v
from kernels_under_test.cpu.folder import words as w
from kernels_under_test.cpu.runtime.program import kernel

@kernel
def clear(at: int, chunk: int) -> None:
    v.write_fp32(v.read(at + 8), 0.0)

@kernel
def add(at: int, chunk: int) -> None:
    out = v.read(at + 8)
    v.write_fp32(out, v.read_fp32(out) + w.both(v.read(at)) + math.sin(v.read_fp32(out)))
"""
WORDS = """
from kernels_under_test.cpu import simd as v
from kernels_under_test.cpu.runtime.program import inline

@inline
def both(at):
    return v.read_fp32(at) + v.read_fp32(at + 4)
"""


def imported(*modules: str) -> dict[str, str]:
    """The texts of modules by their place in the folder of kernels, and of those of it that they import, and so on."""
    texts: dict[str, str] = {}
    waiting = [SOURCES / f"{module}.py" for module in modules]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(SOURCES).as_posix()
        if name in texts or not path.is_file():
            continue
        texts[name] = path.read_text(encoding="utf-8")
        waiting += [folder / "__init__.py" for folder in path.parents if SOURCES in folder.parents]
        for statement in ast.walk(ast.parse(texts[name])):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("llamita.kernels."):
                place = SOURCES.joinpath(*str(statement.module).split(".")[2:])
                waiting += [place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in statement.names)]
    return texts


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Sources of a test's own, and nothing kept."""
    return make_room(tmp_path)


def make_room(folder: Path) -> Path:
    """A copy of what compiles and keeps kernels, with kernels of two files that call a function of the system's.

    One of the files is in a folder.
    """
    copy = folder / "kernels_under_test"
    texts = {"__init__.py": "", **imported("cpu/runtime/program", "cpu/simd")}
    assert "cpu/isa.py" in texts and "cpu/runtime/code_cache.py" in texts and "cpu/gemm.py" not in texts
    texts |= {"cpu/toy.py": TOY, "cpu/folder/__init__.py": "", "cpu/folder/words.py": WORDS}
    for name, text in texts.items():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("llamita.kernels", "kernels_under_test"), encoding="utf-8")
    return copy


@pytest.fixture
def start(room: Path, zygote: Zygote) -> Start:
    """Run a script on the test's sources."""
    return starting(room, zygote)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """Sources whose kernels are kept; what is kept does not depend on where they are."""
    room = make_room(tmp_path_factory.mktemp("compiled"))
    assert result(starting(room, zygote)()) == "7.0 compiled"
    return room


@pytest.fixture
def kept(room: Path, compiled: Path) -> None:
    """The test's kernels are kept."""
    shutil.copytree(compiled.parent / "home", room.parent / "home")


def starting(room: Path, zygote: Zygote) -> Start:
    """Run a script on the copy in a process of its own, with every warning an error and a home of its own."""
    home = {"HOME": str(room.parent / "home"), "XDG_CACHE_HOME": str(room.parent / "home")}
    rest = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}

    def started(script: str = SCRIPT, **environment: str) -> int:
        return zygote.start(script, {**rest, **home, "PYTHONPATH": str(room.parent), **environment})

    return started


def files(room: Path) -> list[Path]:
    """What is kept."""
    return sorted((room.parent / "home" / "llamita" / "kernels").glob("*/*"))


def block(folder: Path) -> None:
    """Put a file where a folder would be made: nobody, not even root, can write there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("")


def test_what_is_kept_is_run_without_numba_until_any_source_changes(room: Path, start: Start) -> None:
    together = [start(), start()]
    assert {result(process)[:3] for process in together} == {"7.0"}
    assert [file.name for file in files(room)] == ["toy.add", "toy.clear"]
    assert result(start()) == "7.0 found"
    lesser = {"NUMBA_CPU_NAME": "x86-64" if X86 else "generic", "NUMBA_CPU_FEATURES": "", "LLAMITA_CPU": ""}
    assert result(start(**lesser)) == "7.0 compiled"
    assert result(start()) == "7.0 found"
    words = room / "cpu" / "folder" / "words.py"
    words.write_text(WORDS.replace("+ v.read", "* v.read"), encoding="utf-8")
    assert result(start()) == "12.0 compiled"


@pytest.mark.usefixtures("kept")
def test_damaged_code_is_never_run(room: Path, start: Start) -> None:
    add, clear = files(room)
    whole, look = (
        add.read_bytes(),
        "from kernels_under_test.cpu.runtime import code_cache; print(code_cache.find('toy.add') is not None)",
    )
    assert result(start(look)) == "True"
    for damaged in (b"", whole[:100], whole[:-1], whole[:-8] + b"12345678", whole + b"\0", clear.read_bytes()):
        add.write_bytes(damaged)
        assert result(start(look)) == "False"
    assert result(start()) == "7.0 compiled"
    assert result(start()) == "7.0 found"


@pytest.mark.usefixtures("kept")
def test_code_that_calls_what_is_not_there_is_compiled(start: Start) -> None:
    """LLVM would end the process."""
    lie = """
import dataclasses
from kernels_under_test.cpu.runtime import code_cache
code = code_cache.find("toy.add")
code_cache.store("toy.add", dataclasses.replace(code, calls=("no_such_function",)))
print(code.calls, code_cache.find("toy.add"))
"""
    assert result(start(lie)) in ("('sin',) None", "('sinf',) None")
    assert result(start()) == "7.0 compiled"


def test_nothing_is_left_beside_the_sources(compiled: Path) -> None:
    left = {path for path in compiled.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert left == {*compiled.rglob("*.py")}


def test_what_is_kept_goes_where_a_variable_says_and_nowhere_without_a_folder(room: Path, start: Start) -> None:
    elsewhere = room.parent / "elsewhere"
    assert result(start(NUMBA_CACHE_DIR=str(elsewhere))) == "7.0 compiled"
    assert result(start(NUMBA_CACHE_DIR=str(elsewhere))) == "7.0 found"
    block(room.parent / "home")
    assert result(start()) == "7.0 compiled"


def test_what_nobody_added_to_for_a_month_goes(room: Path, start: Start) -> None:
    kernels = room.parent / "home" / "llamita" / "kernels"
    for name, days in {"old": 31, "new": 29}.items():
        (kernels / name).mkdir(parents=True)
        (kernels / name / "toy.add").write_text("")
        os.utime(kernels / name, (0, time.time() - days * 24 * 3600))
    stored = "from kernels_under_test.cpu.runtime import code_cache, machine_code;"
    stored += "code_cache.store('toy.add', machine_code.Code(b'image', 'entry', ()))"
    assert result(start(stored)) == ""
    assert not (kernels / "old").exists()
    assert (kernels / "new").exists() and len(files(room)) == 2


CODE = Code(b"image", "entry", ())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept in this process."""
    monkeypatch.setattr(code_cache, "_folder", lambda: tmp_path / "kernels")
    return tmp_path / "kernels"


def never() -> Code:
    """Makes nothing."""
    raise AssertionError("made twice")


@pytest.mark.skipif(code_cache.fcntl is None, reason="this system has no such locks")
def test_who_needs_a_kernel_that_another_makes_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, is_waited_for = Event(), Event()
    monkeypatch.setattr(code_cache.time, "sleep", lambda seconds: is_waited_for.set() or begun.wait())

    def make() -> Code:
        begun.set()
        assert is_waited_for.wait(300)
        return CODE

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(code_cache.find_or_make, "toy.add", make)
        assert begun.wait(300)
        second = pool.submit(code_cache.find_or_make, "toy.add", never)
        assert first.result() == second.result() == CODE
    assert [path.name for path in folder.iterdir()] == ["toy.add"]


@pytest.mark.parametrize("trouble", ["it takes too long", "it failed", "no locks", "no folder"])
def test_who_cannot_wait_makes_the_kernel(trouble: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if trouble == "no locks":
        monkeypatch.setattr(code_cache, "fcntl", None)
    if trouble == "no folder":
        block(folder)
    if trouble == "it failed":
        with pytest.raises(AssertionError):
            code_cache.find_or_make("toy.add", never)
    if trouble == "it takes too long" and code_cache.fcntl is not None:
        monkeypatch.setattr(code_cache, "_LONGEST", 0.0)
        with code_cache._turn("toy.add"):
            assert code_cache.find_or_make("toy.add", lambda: CODE) == CODE
    assert code_cache.find_or_make("toy.add", lambda: CODE) == CODE
    assert trouble == "no folder" or code_cache.find_or_make("toy.add", never) == CODE


DECODE = """
import sys, torch
from llamita import LlamaConfig, LlamaForCausalLM
from llamita.plans.cpu import fuse
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)
model = fuse(LlamaForCausalLM(config).to(torch.bfloat16).eval())
ids = torch.arange(40)[None] % 90
with torch.inference_mode():
    read = model(ids, use_cache=True)
    logits = [read.logits, model(ids[:, :1], past_key_values=read.past_key_values).logits]
print("numba" in sys.modules, [x.double().sum().item() for x in logits])
"""


def test_a_model_reads_and_writes_without_numba_once_its_kernels_are_kept(room: Path, start: Start) -> None:
    """Compiled once for all tests; here only what every program has is compiled anew, in a home of its own."""
    ours = {"PYTHONPATH": str(SOURCES.parent.parent)}
    shared = {"XDG_CACHE_HOME": str(code_cache._folder().parents[2])}
    once = result(start(DECODE, **ours, **shared)).split(" ", 1)[1]
    here = room.parent / "home" / "llamita" / "kernels" / code_cache._folder().name
    shutil.copytree(code_cache._folder(), here)
    (here / "runtime.worker.work").unlink()
    assert result(start(DECODE, **ours)) == f"True {once}"
    assert result(start(DECODE, **ours)) == f"False {once}"


def test_names_are_those_of_kernels() -> None:
    """A wrong one would show only where nothing is kept."""
    from llamita.kernels.cpu import linear, repack
    from llamita.kernels.cpu.runtime import program
    from llamita.plans.cpu import attention, passes

    tables = [table for module in (linear, repack, passes, attention) for table in vars(module).values()]
    rows = [row for table in tables if isinstance(table, dict) for row in table.values()]
    seen = {id(one): one for one in (*tables, *rows, program._WORKER) if type(one) is Kernel}
    assert len(seen) > 4 * len(FORMATS) + 6 * len(DTYPES)
    assert all(isinstance(found(one._module, one._name), Kernel) for one in seen.values())
