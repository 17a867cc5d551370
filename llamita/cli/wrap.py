"""Word wrap on a terminal, for text that comes in pieces."""

import re
import unicodedata
from collections.abc import Callable

TAB = 8
PARTS = re.compile(r"\n|\t|[^\S\n\t]+|\S+")


class Wrap:
    """Breaks lines where the next word does not fit; a word that fits a line of its own is never cut.

    So a word waits until it is whole. columns: gives the width of a line; called for every piece.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._column = 0  # where the next character stands
        self._blanks = ""  # after the last word; dropped where the line breaks
        self._word = ""  # not yet whole

    def push(self, piece: str) -> str:
        """Take a piece; returns what can be shown now."""
        columns = self._columns()
        parts = [word for part in PARTS.findall(self._word + piece) for word in _words(part)]
        self._word = ""
        # A word that no line can hold need not wait, nor a wide character: a line may break after it.
        if parts and not parts[-1].isspace() and not _is_wide(parts[-1][0]) and width(parts[-1]) <= columns:
            self._word = parts.pop()
        return "".join(self._placed(part, columns) for part in parts)

    def flush(self) -> str:
        """What still waits."""
        word, self._word = self._word, ""
        return self._placed(word, self._columns()) if word else ""

    def _placed(self, part: str, columns: int) -> str:
        """A word, blanks or a line's end as they are to be shown."""
        if part == "\n":
            self._column, self._blanks = 0, ""
            return part
        if part.isspace():
            self._blanks += " " * (TAB - (self._column + len(self._blanks)) % TAB) if part == "\t" else part
            return ""
        before, self._blanks = self._blanks, ""
        if self._column and self._column + len(before) + width(part) > columns:
            self._column, before = 0, "\n"
        else:
            self._column += len(before)
        self._column += width(part)
        if self._column > columns:  # the terminal breaks it
            self._column = self._column % columns or columns
        return before + part


def width(text: str) -> int:
    """The columns that a text takes on a terminal: two for a wide character, none for a mark on the one before."""
    return len(text) if text.isascii() else sum(0 if _is_mark(c) else 1 + _is_wide(c) for c in text)


def _words(part: str) -> list[str]:
    """A part, cut around wide characters: between those of Chinese or Japanese a line may break."""
    if part.isascii() or part.isspace():
        return [part]
    words: list[str] = []
    for character in part:
        is_new = not words or _is_wide(character) or _is_wide(words[-1][0])
        if is_new and not (words and _is_mark(character)):
            words.append(character)
        else:
            words[-1] += character
    return words


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Cf")
