"""Streams of answers that may be calls of tools: what could be a call waits until that is clear."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llamita.generation.completion import Completion
from llamita.server.compact_json import CompactJson
from llamita.server.sse import dumped
from llamita.structured.tool_calls import PYTHON_TAG, ToolCall

TAG = "<function="
OPENINGS = ("{", "[", PYTHON_TAG)  # an answer that begins so is a call, or is shown when it is over
# What stands before the arguments of a call, in the formats whose arguments are JSON.
_TAGGED = re.compile(r"<function=(?P<name>[^>\s]{1,128})>\s*(?=\{)")
_NAMED = re.compile(
    rf'[\s;}}]*(?:{re.escape(PYTHON_TAG)})?\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?'
    r'"name"\s*:\s*"(?P<name>[^"\\]{1,128})"\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)


class Piece(NamedTuple):
    """A piece of an answer: of its text, the name of a function that it begins to call, or of the arguments in JSON."""

    kind: Literal["text", "call", "arguments"]
    text: str


class ToolText:
    """The pieces of an answer as it is written, without what may yet become a call; `rest` has that.

    names: of the tools; the arguments of a call of one of them are given as they come. most: calls at the most.
    calls: that have begun. One that turns out to be cut or damaged cannot be taken back.
    """

    def __init__(self, names: Collection[str] = (), most: int | None = None) -> None:
        self._names, self._most = names, most
        self._held, self._is_plain, self._is_call = "", False, False
        self._arguments: CompactJson | None = None
        self._is_tagged = False
        self.calls = 0

    def push(self, text: str) -> list[Piece]:
        """What can be shown now that this was written."""
        self._held += text
        shown = "" if self._is_call else self._shown()
        pieces = [Piece("text", shown)] if shown else []
        return [*pieces, *self._called()] if self._is_call else pieces

    def rest(self, calls: Sequence[ToolCall]) -> list[Piece]:
        """What is left of an answer that is over, and whose calls are these."""
        if not calls:
            return [Piece("text", self._held)] if self._held and not self.calls else []
        later = calls[self.calls :]
        self.calls += len(later)
        return [piece for call in later for piece in pieces_of(call)]

    def _shown(self) -> str:
        """The text that is no call, nor the beginning of one."""
        begin = self._held.lstrip()
        if not self._is_plain:
            if begin.startswith(OPENINGS):
                self._is_call = True
                return ""
            if not begin or any(opening.startswith(begin) for opening in OPENINGS):
                return ""
            self._is_plain = True
        at = self._held.find(TAG)
        if at < 0:
            sizes = range(min(len(TAG) - 1, len(self._held)), 0, -1)
            at = len(self._held) - next((size for size in sizes if self._held.endswith(TAG[:size])), 0)
        else:
            self._is_call = self._is_tagged = True
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def _called(self) -> Iterator[Piece]:
        """The pieces of calls in what is held."""
        while self._arguments is not None or self._begins():
            if self._arguments is None:
                yield Piece("call", self._take_head())
                self._arguments = CompactJson()
            text, self._held = self._arguments.push(self._held)
            if text:
                yield Piece("arguments", text)
            if not self._arguments.is_over:
                return
            self._arguments = None

    def _head(self) -> re.Match[str] | None:
        return _TAGGED.search(self._held) if self._is_tagged else _NAMED.match(self._held)

    def _begins(self) -> bool:
        """Whether a call of a known tool begins, and may."""
        head = None if self._most is not None and self.calls >= self._most else self._head()
        return head is not None and head["name"] in self._names

    def _take_head(self) -> str:
        head = self._head()
        assert head is not None
        self._held, self.calls = self._held[head.end() :], self.calls + 1
        return head["name"]


class PlainText:
    """The pieces of an answer that can call no tool, as `ToolText` gives them."""

    calls = 0

    def push(self, text: str) -> list[Piece]:
        """All of it."""
        return [Piece("text", text)]

    def rest(self, calls: Sequence[ToolCall]) -> list[Piece]:
        """Nothing."""
        return []


TextReader = ToolText | PlainText


@dataclass(frozen=True)
class ToolUse:
    """Which tools the answers to a request may call, by their names, and how many calls each has at the most."""

    names: tuple[str, ...]
    most: int | None = None

    def reader(self) -> TextReader:
        """What tells text from calls in an answer as it is written."""
        return ToolText(self.names, self.most) if self.names else PlainText()

    def calls_of(self, completion: Completion) -> list[ToolCall]:
        """The calls of an answer that is over."""
        return completion.tool_calls[: self.most]


def pieces_of(call: ToolCall) -> list[Piece]:
    """A whole call."""
    return [Piece("call", call.name), Piece("arguments", dumped(call.arguments))]


def text_before_calls(text: str) -> str:
    """What an answer with calls says before them."""
    return "".join(piece.text for piece in ToolText().push(text))
