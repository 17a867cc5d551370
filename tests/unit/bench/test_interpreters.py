"""The Python of --peers-python: asked where this one lacks a library, refused in a sentence where it cannot serve."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llamita.bench import interpreters, prefill, systems
from llamita.bench.systems import SYSTEMS
from llamita.bench.workers import Worker
from llamita.errors import LlamitaError, UnsupportedError, UsageError
from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

NEEDS = {"torch": "2.11", "numba": "0.61", "rich": "13"}


@pytest.fixture(autouse=True)
def only_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python lacks every peer, and llamita needs three packages."""
    interpreters.check.cache_clear()
    monkeypatch.setattr(systems, "version", lambda package, python: "1.0" if python else "")
    monkeypatch.setattr(interpreters, "needed", lambda: NEEDS)


def program(folder: Path, text: str) -> str:
    """A program of the shell's that prints a text, whatever it is asked."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nprintf '{text}'\n")
    path.chmod(0o755)
    return str(path)


GOOD = {"python": "3.12", "torch": "2.11.0+cpu", "numba": "0.61.2", "rich": "15"}


def answers(changes: Mapping[str, str | None]) -> str:
    """The lines of an interpreter that lacks nothing, but for the changes."""
    return "".join(f"{word} {rest}\\n" for word, rest in {**GOOD, **changes}.items() if rest is not None)


@pytest.mark.parametrize(
    "changes", [{}, {"python": "4.0"}, {"rich": None}, {"torch": "2.11"}, {"torch": "3.0rc2"}], ids=str
)
def test_it_is_taken(changes: dict[str, str | None], tmp_path: Path) -> None:
    """Packages that the benchmark does not come upon may be absent."""
    path = program(tmp_path, answers(changes))
    assert systems.interpreter(SYSTEMS["openvino"], path) == path
    assert systems.interpreter(SYSTEMS["llamita"], path) is None


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"python": None}, UsageError, "is no Python: give the path"),
        ({"python": "is a snake"}, UsageError, "is no Python: give the path"),
        ({"python": "3.10"}, UsageError, "is Python 3.10: llamita needs 3.11 or newer there too"),
        ({"python": "2.7"}, UsageError, "is Python 2.7: llamita needs 3.11 or newer there too"),
        ({"numba": None, "failure": "E: no"}, UnsupportedError, "lacks numba: {0} -m pip install 'numba>=0.61'"),
        (
            {"torch": None, "rich": None, "failure": "E: no"},
            UnsupportedError,
            "lacks torch, rich: {0} -m pip install 'torch>=2.11' 'rich>=13'",
        ),
        (
            {"torch": "2.9.1"},
            UnsupportedError,
            "has torch 2.9.1, which is older than 2.11: {0} -m pip install 'torch>=2.11'",
        ),
        (
            {"torch": "2.9.1", "rich": None, "failure": "E: no"},
            UnsupportedError,
            "lacks rich and has torch 2.9.1, which is older than 2.11: {0} -m pip install 'rich>=13' 'torch>=2.11'",
        ),
        ({"failure": "OSError: libgomp"}, UnsupportedError, "cannot run the benchmark (OSError: libgomp): {0} -m pip"),
    ],
    ids=str,
)
def test_it_is_refused(changes: dict[str, str | None], error: type[LlamitaError], why: str, tmp_path: Path) -> None:
    path = program(tmp_path, answers(changes))
    with pytest.raises(error, match=re.escape(f"--peers-python {path} {why.format(path)}")):
        systems.interpreter(SYSTEMS["openvino"], path)


def test_what_is_no_program_or_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "damaged").write_bytes(b"\x7fELF and no more")
    (tmp_path / "damaged").chmod(0o755)
    for name in ("none", "", "text"):
        with pytest.raises(UsageError, match="is no program"):
            systems.interpreter(SYSTEMS["openvino"], str(tmp_path / name))
    with pytest.raises(UsageError, match="is no Python"):
        systems.interpreter(SYSTEMS["openvino"], str(tmp_path / "damaged"))


def test_a_library_that_neither_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "version", lambda package, python: "")
    path = program(tmp_path, answers({}))
    with pytest.raises(UnsupportedError, match=f"neither here nor in .*: {path} -m pip install openvino"):
        systems.interpreter(SYSTEMS["openvino"], path)


def test_an_empty_environment_lacks_what_stands_in_pyproject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one; what a check might overlook is named by the process that misses it."""
    monkeypatch.undo()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    python = str(tmp_path / "bin" / "python")
    with pytest.raises(UnsupportedError, match=r"lacks torch, numpy, numba, .*-m pip install 'torch>=2.11' 'numpy>="):
        interpreters.check(python)
    worker = Worker(prefill.prepare, (), 1, python=python)
    try:
        with pytest.raises(LlamitaError, match=f"^{python} lacks the module torch, which .* install it there$"):
            worker.measure("run")
    finally:
        worker.stop()


def test_this_python_lacks_nothing(zygote: Zygote) -> None:
    script = f"import sys; sys.argv = ['-c', {','.join(interpreters.MODULES)!r}, 'torch', 'no-such-package']"
    printed = result(zygote.start(script + interpreters.PROBE, os.environ | {"PYTHONPATH": str(ROOT)}))
    assert [line.split()[0] for line in printed.splitlines()] == ["python", "torch"]
