"""What the pages show works: README and docs blocks and every example are run as a reader would run them.

A `llamita` of a shell block is a fork of one process that has imported torch, and Python runs in this one.
"""

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llamita.cli.main import main
from tests.architecture.source import ROOT
from tests.docs.blocks import Block, command, read_blocks
from tests.zygote import Zygote

README = ROOT / "README.md"
# Those that ask a server are run against one: tests/server/test_examples.py.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.endswith("_client"))
EXAMPLE_LINES = 40
SHELLS = ("bash", "sh", "shell", "console")


def pages() -> list[Path]:
    """The README and everything in docs/."""
    return [page for page in (README, *sorted((ROOT / "docs").rglob("*.md"))) if page.exists()]


def blocks_of(*languages: str) -> list[pytest.ParameterSet]:
    """Every unmarked block of these languages, named by page and line."""
    found = [(page, block) for page in pages() for block in read_blocks(page.read_text(encoding="utf-8"))]
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.line}")
        for page, block in found
        if block.language in languages and not block.mark
    ]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with the repository's examples and recipes in it, where writing does no harm."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def run(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run a Python file as the main program, with nothing to read."""
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    runpy.run_path(str(path), run_name="__main__")


def test_readme_has_the_two_commands() -> None:
    page = README.read_text(encoding="utf-8")
    assert command(page, "run")
    assert "pytest" in command(page, "test")


def test_left_out_blocks_say_why() -> None:
    blocks = [block for page in pages() for block in read_blocks(page.read_text(encoding="utf-8"))]
    assert not [block for block in blocks if block.mark == "not run" and len(block.remark.split()) < 2]


@pytest.mark.skipif(os.name != "posix", reason="forks processes")
@pytest.mark.parametrize("block", blocks_of(*SHELLS))
def test_shell_block_runs(block: Block, reader: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> None:
    programs = tmp_path_factory.mktemp("programs")
    zygote.write_command(programs)
    paths = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], env=os.environ | {"PATH": paths}, pass_fds=[zygote.orders],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_the_command_of_the_shell_is_the_one_that_is_tested() -> None:
    (command,) = [one for one in entry_points(group="console_scripts") if one.name == "llamita"]
    assert command.load() is main


def test_the_readmes_schema_is_filled_with_what_the_readmes_sentence_says(
    reader: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = next(
        block.text for block in read_blocks(README.read_text(encoding="utf-8")) if "--json-schema" in block.text
    )
    (asked,) = [line for line in words.replace("\\\n", " ").splitlines() if "--json-schema" in line]
    assert main(shlex.split(asked)[1:]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "Mia", "age": 28, "city": "Lima"}


@pytest.mark.parametrize("block", blocks_of("python"))
def test_python_block_runs(block: Block, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (reader / "block.py").write_text(block.text, encoding="utf-8")
    run(reader / "block.py", monkeypatch)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.usefixtures("reader")
def test_example_runs_and_is_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= EXAMPLE_LINES
    run(path, monkeypatch)


def test_files_to_read_are_there() -> None:
    section = README.read_text(encoding="utf-8").partition("## Read the code")[2].partition("\n## ")[0]
    missing, folder = [], ROOT
    for name in re.findall(r"`([\w/]+\.py)`", section):
        path = ROOT / name if (ROOT / name).exists() or "/" not in name else ROOT / "llamita" / name
        folder, path = (path.parent, path) if "/" in name else (folder, folder / name)  # of the file named before
        missing += [] if path.is_file() or (ROOT / name).is_file() else [name]
    assert missing == []
