"""Answers are wrapped between words on a terminal, and there only."""

import io
import sys
import textwrap
from collections.abc import Generator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamita.cli.commands import Session
from llamita.cli.conversation import Conversation
from llamita.cli.wrap import Wrap, width
from llamita.llm import LLM

TEXT = "The little llama went to the market, where it found a very uncommonlylongword and  two spaces.\n\n  - a list\n"


def wrapped(pieces: list[str], columns: int) -> str:
    lines = Wrap(lambda: columns)
    return "".join(lines.push(piece) for piece in pieces) + lines.flush()


@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=20), columns=st.integers(18, 60))
def test_pieces_do_not_matter_and_lines_fit(cuts: list[int], columns: int) -> None:
    ends = sorted({0, *cuts, len(TEXT)})
    pieces = [TEXT[a:b] for a, b in pairwise(ends)]
    shown = wrapped(pieces, columns)
    assert shown == wrapped([TEXT], columns)
    assert all(len(line) <= columns for line in shown.split("\n"))
    assert shown.split() == TEXT.split()
    first, *_, item, end = shown.split("\n")
    assert first == textwrap.wrap(TEXT, columns)[0]
    assert (item, end) == ("  - a list", "")


@given(st.text(alphabet="ab  \n\t\u4f60\u0301\U0001f999-", max_size=60), st.integers(2, 12))
def test_nothing_is_lost(text: str, columns: int) -> None:
    shown = wrapped(list(text), columns)
    assert "".join(shown.split()) == "".join(text.split())
    for word in text.split():
        if word.isascii() and len(word) <= columns:
            assert word in shown
    for line in shown.split("\n"):
        assert width(line) <= columns or len(line.split()) <= 1 or not line.isascii()


def test_wide_characters_take_two_columns() -> None:
    assert wrapped(["\u4f60\u597d\u4f60\u597d\u4f60"], 6) == "\u4f60\u597d\u4f60\n\u597d\u4f60"
    assert width("e\u0301") == 1


def test_words_come_as_soon_as_they_are_whole() -> None:
    lines = Wrap(lambda: 10)
    assert [lines.push(piece) for piece in ("one", " t", "wo", " thr", "ee")] == ["", "one", "", " two", ""]
    assert lines.flush() == "\nthree"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_only_terminals_wrap(llm: LLM, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "30")

    def pieces(*, is_stopped: bool) -> Generator[str, None, None]:
        yield from (TEXT[start : start + 3] for start in range(0, 60, 3))
        if is_stopped:
            raise KeyboardInterrupt

    session = Session(Conversation(llm, options={}, seed=0))
    session.say(pieces(is_stopped=False))
    with pytest.raises(KeyboardInterrupt):
        session.say(pieces(is_stopped=True))
    expected = wrapped([TEXT[:60]], 30) if stream.isatty() else TEXT[:60]
    assert stream.getvalue() == (expected + "\n") * 2
