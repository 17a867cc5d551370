"""The command line, run in this process."""

import builtins
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import llamita
from llamita.cli.main import main
from llamita.llm import LLM

FLAGS = ("-n", "8", "-t", "0")  # short and greedy


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(
    small_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run `llamita` with these words on the small model, with `stdin` piped in where it is given."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line sets it, and undone afterwards
    monkeypatch.setenv("LLAMITA_MODEL", str(small_path))
    monkeypatch.chdir(tmp_path)

    def command(*words: str, stdin: str | bytes | None = None) -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        piped = None if data is None else io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", piped)
        capsys.readouterr()
        code = main(list(words))
        return Outcome(code, *capsys.readouterr())

    with warnings.catch_warnings():
        yield command


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    """The small model that `run` runs on."""
    return llamita.load(small_path)


@pytest.fixture
def type_in(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `llamita chat` and type lines; an exception among them is raised where it stands."""

    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)

    def typing(*lines: str | type[BaseException], words: tuple[str, ...] = FLAGS) -> Outcome:
        waiting: Iterator[str | type[BaseException]] = iter(lines)

        def typed(prompt: str = "") -> str:
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", typed)
        return run("chat", *words)

    return typing
