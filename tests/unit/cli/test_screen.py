"""Text on a screen: by whole words, in styles, and never after what is said beside it."""

import io
import re
import sys
from collections.abc import Callable

import pytest

from llamita.cli import main, terminal
from llamita.cli.commands import Session
from llamita.cli.conversation import Conversation
from llamita.cli.screen import Screen
from llamita.llm import LLM

STYLE = re.compile(r"\033\[[\d;]*m")
SPINNER = "\033[2K"  # wipes its line when the wait is over
Look = Callable[[], io.StringIO]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Make one terminal of 30 columns both stdout and stderr; in a fixture pytest's capture would undo it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def opened() -> io.StringIO:
        monkeypatch.setenv("COLUMNS", "30")
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return opened


def test_every_character_keeps_its_style_and_lines_end_between_words(look: Look) -> None:
    stream = look()
    screen = Screen(stream)
    for text, style in (
        ("a" * 20 + " b", "dim"),
        ("bbb", None),
        ("bbbbb\033[2J bb", "sure"),
        ("b\n", "dim"),
        ("", None),
    ):
        screen.write(text, style)
    screen.end_line()
    shown = stream.getvalue().replace("\033[0m\033[38;5;34m", "")  # of one style, though shown in two parts
    second = "\033[2mb\033[0mbbb\033[38;5;34mbbbbb[2J bb\033[0m\033[2mb\033[0m\n"
    assert shown == "\033[2m" + "a" * 20 + "\033[0m\n" + second


def test_off_a_terminal_text_stays_as_it_is_but_ends_its_line() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.end_line()
    screen.write("a\033[2J" * 20)
    screen.write("\a\n", "dim")
    screen.write("b")
    screen.end_line()
    assert stream.getvalue() == "a\033[2J" * 20 + "\nb\n"


def test_an_answer_is_shown_whole_before_it_is_called_cut(
    llm: LLM, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Conversation(llm, options={"max_tokens": 8, "temperature": 0.0}, seed=0)
    stream = look()
    Session(chat).say(chat.answer("Hi"))
    answer = chat.turns[-1]["content"].translate(terminal.CONTROLS)
    shown = STYLE.sub("", stream.getvalue())
    assert shown.split() == [*answer.split(), "(cut", "at", "the", "limit", "of", "tokens)"]
    assert shown.endswith("\n(cut at the limit of tokens)\n")
    stream.seek(stream.truncate(0))
    with monkeypatch.context() as patch:
        patch.setattr(llm.tokenizer, "eos_token_ids", list(range(260)))
        Session(chat).say(chat.retry())
    assert "no answer" in stream.getvalue() and "cut" not in stream.getvalue()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("words", [["generate"], ["generate", "--show-probs"]])
def test_generate_wraps_prompt_and_text_at_words(words: list[str], look: Look) -> None:
    stream = look()
    prompt = "The little llama went to the market where it found a hat."
    assert main.main([*words, prompt, "-n", "9", "-t", "0", "--seed", "1"]) == 0
    shown = STYLE.sub("", stream.getvalue()).rpartition(SPINNER)[2]
    assert shown.startswith("The little llama went to the\nmarket where it found a")
    assert all(len(line) <= 30 for line in shown.split("\n"))


@pytest.mark.usefixtures("run")
def test_what_is_said_beside_the_answer_is_wrapped_too(look: Look) -> None:
    stream = look()
    assert main.main(["generate", "a", "--top-p", "7"]) == 2
    shown = STYLE.sub("", stream.getvalue()).rpartition(SPINNER)[2]
    assert shown.startswith("llamita: top_p is 7") and shown.count("\n") > 1
    assert all(len(line) <= 30 for line in shown.split("\n"))
