"""What is kept of compiled kernels: never stale, wherever there is room for it, and not needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llamita.kernels
from llamita.kernels import simd

X86 = "x86_64" in simd.target()[0]

# Prints the sum of two numbers that a kernel reads, and whether its code came from the disk.
SCRIPT = """
import torch, kernels_under_test.toy as toy
from kernels_under_test.program import Program
x, out, program = torch.tensor([3.0, 4.0]), torch.zeros(1), Program()
program.add(toy.add, x.data_ptr(), out.data_ptr())
program.run(1)
print(out.item(), toy.add._compiled.cache_hits)
"""
TOY = """
from kernels_under_test import words as w
from kernels_under_test import simd as v
from kernels_under_test.program import kernel

@kernel
def add(at: int, chunk: int) -> None:
    v.write_fp32(v.read(at + 8), w.both(v.read(at)))
"""
WORDS = """
from kernels_under_test import simd as v
from kernels_under_test.program import part

@part
def both(at):
    return v.read_fp32(at) + v.read_fp32(at + 4)
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A copy of what compiles kernels, with a kernel of two files."""
    source = Path(llamita.kernels.__file__).parent
    copy = tmp_path / "kernels_under_test"
    copy.mkdir()
    for name in ("simd", "program", "team"):
        text = (source / f"{name}.py").read_text(encoding="utf-8")
        (copy / f"{name}.py").write_text(text.replace("llamita.kernels", "kernels_under_test"), encoding="utf-8")
    for name, text in {"__init__": "", "toy": TOY, "words": WORDS}.items():
        (copy / f"{name}.py").write_text(text, encoding="utf-8")
    return copy


def start(room: Path, **environment: str) -> "subprocess.Popen[str]":
    """Run the script in a process of its own, with every warning an error."""
    home = {"HOME": str(room.parent / "home"), "XDG_CACHE_HOME": str(room.parent / "home")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**kept, **home, "PYTHONPATH": str(room.parent), **environment},
    )  # fmt: skip


def result(process: "subprocess.Popen[str]") -> str:
    """What it printed."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out.strip()


def block(folder: Path) -> None:
    """Put a file where a folder would be made: nobody, not even root, can write there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("")


def test_what_is_kept_is_used_until_any_source_changes(room: Path) -> None:
    together = [start(room), start(room)]
    assert {result(process)[:3] for process in together} == {"7.0"}
    assert result(start(room)) == "7.0 1"
    assert result(start(room, NUMBA_CPU_NAME="x86-64" if X86 else "generic", NUMBA_CPU_FEATURES="")) == "7.0 0"
    words = room / "words.py"
    words.write_text(WORDS.replace("+ v.read", "* v.read"), encoding="utf-8")
    assert result(start(room)) == "12.0 0"
    for file in room.parent.rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])  # cut short, as by a full disk
    assert result(start(room)) == "12.0 0"


def test_nothing_is_left_beside_the_sources_and_nothing_kept_where_no_folder_is(room: Path) -> None:
    assert result(start(room)) == "7.0 0"
    assert result(start(room)) == "7.0 1"
    assert not list(room.rglob("*.nb?"))
    assert list((room.parent / "home" / "llamita").rglob("*.nbc"))
    block(room.parent / "home")
    assert result(start(room)) == "7.0 0"
