"""The way in: verbs, help, version, and what a terminal sees."""

import atexit
import gc
import importlib
import io
import sys
from pathlib import Path

import pytest

import llamita
from llamita.cli import main, terminal
from tests.unit.cli.conftest import Run


def test_help_names_every_verb_and_every_verb_keeps_its_form(run: Run) -> None:
    outcome = run("--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert run().out == run("-h").out == outcome.out
    for words in (("help",), ("help", "help"), ("help", "version"), ("help", "-h"), ("--help", "help")):
        assert run(*words) == outcome
    for verb, does in main.VERBS.items():
        assert f"  {verb:<10} {does}" in outcome.out
        module = importlib.import_module(f"llamita.cli.{verb}")
        assert verb == module.NAME
        assert module.EXAMPLES.strip().startswith(f"llamita {verb}")
        shown = run(verb, "--help")
        assert shown.code == 0
        assert f"usage: llamita {verb}" in shown.out
        assert "examples:" in shown.out
        assert "--debug" in shown.out


def test_version(run: Run) -> None:
    assert run("--version") == run("-V") == (0, f"llamita {llamita.__version__}\n", "")


def test_an_empty_word_is_no_model(run: Run) -> None:
    Path("config.json").write_text("{}", encoding="utf-8")  # so that the folder here is a model's
    assert run("").err == "llamita: the first word is empty: llamita --help lists the verbs\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def look_at(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it stdout and stderr; in a fixture pytest's capture would undo it."""
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)


def test_colours_are_for_terminals_that_want_them(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.paint("x", "dim", screen) == "\033[2mx\033[0m"
    assert terminal.paint("x", "dim", io.StringIO()) == "x"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert terminal.paint("x", "dim", screen) == "x"


def test_a_model_does_not_steer_the_terminal(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(screen, monkeypatch)
    terminal.show("a\033[2Jb\x07\n\tc\x9bd")
    assert screen.getvalue() == "a[2Jb\n\tcd"


@pytest.mark.usefixtures("run")
def test_a_terminal_sees_prompt_text_and_summary(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(screen, monkeypatch)
    assert main.main(["generate", "abc", "-n", "5", "-t", "0", "--seed", "7"]) == 0
    seen = screen.getvalue()
    assert "\033[2mabc\033[0m" in seen
    assert "5 tokens in " in seen
    assert "limit of tokens; seed 7" in seen
    screen.seek(screen.truncate(0))
    assert main.main(["generate", "abc", "-n", "5", "-t", "0", "-q"]) == 0
    assert "abc" not in screen.getvalue()
    assert screen.getvalue().endswith("\n")
    assert "tokens in" not in screen.getvalue()


def test_exits_search_no_garbage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    run("--version")
    assert at_exit == [gc.freeze]
