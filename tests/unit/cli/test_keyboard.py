"""Typed lines: messages of several, a history between chats, an editor."""

import builtins
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.cli import keyboard
from llamita.cli.keyboard import Entry, Keyboard, Said, joined
from llamita.errors import UsageError
from llamita.llm import LLM
from tests.unit.cli.conftest import Outcome
from tests.unit.cli.test_chat import answers


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["Hi", " ", "", " you "], [Said("Hi"), Said("you")]),
        (["/help", " /help"], [Said("/help", True), Said("/help", True)]),
        (['"""a', "", "  b", '"""'], [Said("a\n\n  b")]),
        (['"""', "a", 'b"""', "c"], [Said("a\nb"), Said("c")]),
        (['"""/not a command"""'], [Said("/not a command")]),
        (['"""', '"""', '""""""', "x"], [Said("x")]),
        (["a \\", "b\\", "c"], [Said("a \nb\nc")]),
        (["/system a\\", "b"], [Said("/system a\nb", True)]),
        (['"""never', "closed"], [Said("never\nclosed")]),
        (["ends \\"], [Said("ends")]),
        (['say """ inside'], [Said('say """ inside')]),
    ],
)
def test_lines_become_messages(lines: list[str], said: list[Said]) -> None:
    assert list(joined(lines)) == said


def test_an_entry_knows_that_more_is_to_come() -> None:
    entry = Entry()
    assert not entry.is_open
    assert entry.push('"""') is None
    assert entry.is_open
    assert entry.push('x"""') == Said("x")
    assert not entry.is_open


def test_several_typed_lines_and_ctrl_c_among_them(type_in: Callable[..., Outcome], llm: LLM) -> None:
    outcome = type_in('"""a', "b", '"""', '"""never', KeyboardInterrupt, "Hi")
    assert outcome.code == 0
    assert outcome.out == "".join(text + "\n" for text in answers(llm, "a\nb", "Hi"))
    assert "(dropped)" in outcome.err
    assert ". " in outcome.err


def test_the_context_is_measured(type_in: Callable[..., Outcome]) -> None:
    assert "/128 tokens)" in type_in("Hi").err
    assert "/128 tokens)" not in type_in("Hi", words=("-n", "8", "-q")).err


def test_an_edit_asks_again(type_in: Callable[..., Outcome], llm: LLM) -> None:
    outcome = type_in("Hi", "/edit", KeyboardInterrupt, "/edit", EOFError, "/edit", "Hello", "/edit", "Hello")
    assert outcome.out == "".join(answers(llm, text)[0] + "\n" for text in ("Hi", "Hello"))
    assert outcome.err.count("(unchanged)") == 3


def test_an_editor_gets_the_text_and_gives_it_back(tmp_path: Path) -> None:
    script = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text().upper())"
    assert keyboard.edited("hi\nthere", [sys.executable, "-c", script]) == "HI\nTHERE"
    for command in (["no such editor"], [sys.executable, "-c", "exit(1)"]):
        with pytest.raises(UsageError, match="set EDITOR"):
            keyboard.edited("hi", command)


def test_the_editor_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    assert keyboard.editor() == []
    monkeypatch.setenv("EDITOR", "code --wait")
    assert keyboard.editor() == ["code", "--wait"]
    monkeypatch.setenv("VISUAL", "'my editor'")
    assert keyboard.editor() == ["my editor"]


class Readline:
    """Stands in for the library, which has one state for the whole process."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.typed = ""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None

    def read_history_file(self, path: Path) -> None:
        self.lines = path.read_text().splitlines()

    def write_history_file(self, path: Path) -> None:
        path.write_text("\n".join(self.lines))

    def get_line_buffer(self) -> str:
        return self.typed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Readline:
    library = Readline()
    monkeypatch.setattr(keyboard, "readline", library)

    def typed(prompt: str = "") -> str:
        library.lines.append("Hello")
        return "Hello"

    monkeypatch.setattr(builtins, "input", typed)
    return library


def test_lines_are_kept_for_the_next_chat(library: Readline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = keyboard.history_file()
    assert path == tmp_path / "state" / "llamita" / "chat_history"
    typing = Keyboard(history=path)
    typing.line("> ")
    assert not path.exists()  # no terminal
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert typing.line("> ") == "Hello"
    assert path.read_text() == "Hello\nHello"
    assert path.stat().st_mode & 0o77 == 0
    library.lines = []
    Keyboard(history=path)
    assert library.lines == ["Hello", "Hello"]
    Keyboard().line("> ")
    assert path.read_text() == "Hello\nHello"


def test_a_history_that_cannot_be_kept_does_not_matter(
    library: Readline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Keyboard(history=tmp_path / "file" / "history").line("> ") == "Hello"


def test_the_history_is_in_the_home_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert keyboard.history_file() == Path.home() / ".local" / "state" / "llamita" / "chat_history"


def test_the_tab_key_completes(library: Readline, tmp_path: Path) -> None:
    typing = Keyboard(words=["/set", "/set temperature", "/set top_p"])
    (tmp_path / "tale.json").touch()

    def fits(typed: str) -> list[str | None]:
        library.typed = typed
        return [typing._completed(typed.rpartition(" ")[2], number) for number in range(2)]

    assert fits("/set te") == ["temperature ", None]
    assert fits("/se") == ["/set ", "/set temperature "]
    assert fits(f"/load {tmp_path}/ta") == [f"{tmp_path}/tale.json", None]
    assert fits("te") == fits("/load /no/such/file") == [None, None]
