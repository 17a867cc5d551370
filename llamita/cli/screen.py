"""Text as it comes, in styles; a terminal gets it by whole words and without control characters."""

from collections import deque
from itertools import groupby
from typing import TextIO

from llamita.cli import terminal
from llamita.cli.wrap import Wrap


class Screen:
    """Writes pieces to a stream. On a terminal lines break between words, so the last word waits until it is whole."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines = Wrap(terminal.columns) if stream.isatty() else None
        self._styles: deque[str | None] = deque()  # of what waits, a character each, blanks left out
        self._style: str | None = None  # of the last character shown
        self._last = "\n"

    def write(self, text: str, style: str | None = None) -> None:
        """Show a piece of text, or as much of it as can be shown now."""
        if style is not None or self._lines is not None:
            text = text.translate(terminal.CONTROLS)
        self._last = text[-1:] or self._last
        if self._lines is None:
            terminal.show(terminal.paint(text, style, self._stream) if style else text, self._stream)
            return
        self._styles.extend(style for character in text if not character.isspace())
        self._show(self._lines.push(text))

    def end_line(self) -> None:
        """Show what waits, and end the line where one was begun."""
        if self._lines is not None:
            self._show(self._lines.flush())
        if self._last != "\n":
            self._last = "\n"
            terminal.show("\n", self._stream)

    def _show(self, text: str) -> None:
        styled = [(self._style_of(character), character) for character in text]
        runs = ((style, "".join(c for _, c in run)) for style, run in groupby(styled, key=lambda pair: pair[0]))
        terminal.show(
            "".join(terminal.paint(run, style, self._stream) if style else run for style, run in runs),
            self._stream,
            is_styled=True,
        )

    def _style_of(self, character: str) -> str | None:
        """The style of the next character to be shown; a blank has that of the one before, a line's end none."""
        if character == "\n":
            return None
        if not character.isspace():
            self._style = self._styles.popleft()
        return self._style
