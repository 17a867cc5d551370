"""What a person at a terminal sees besides the answer: colours, notes, and that something is being waited for."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from llamita.cli.wrap import Wrap

NARROWEST = 10  # columns of a terminal for which lines are still broken between words

LONGEST = 60  # characters that are quoted of a value
# What is too long in a sentence: a value in quotes, in brackets, or one that has no blank, as paths have few.
QUOTED = re.compile(r"(?<!\w)('[^']{60,}'|\"[^\"]{60,}\")(?!\w)|[\[{][^\]}]{200,}[\]}]|[^\s:,;]{200,}")
QUOTES = "'\"[{"
STYLES = {
    "dim": "2",
    "bold": "1",
    "green": "1;32",
    "yellow": "33",
    "red": "1;31",
    # From likely to not, legible on light and on dark.
    "sure": "38;5;34",
    "likely": "38;5;106",
    "open": "38;5;178",
    "unlikely": "38;5;208",
    "surprising": "38;5;197",
}
# A model may write escape sequences; only line ends and tabs get to steer the terminal.
CONTROLS = dict.fromkeys([*range(32), *range(0x7F, 0xA0)]) | {ord("\n"): "\n", ord("\t"): "\t"}


def open_streams() -> None:
    """Let output go nowhere where the process was started without stdout or stderr."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def has_color(stream: TextIO) -> bool:
    """Whether a stream is a terminal that wants colours (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    """The text in a style, where the stream shows styles."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if has_color(stream) else text


def columns() -> int:
    """How many characters a line of the terminal has."""
    return max(shutil.get_terminal_size().columns, NARROWEST)


def show(text: str, stream: TextIO | None = None, *, is_styled: bool = False) -> None:
    """Write a piece of the answer at once, to stdout by default; a terminal gets no control characters of the model.

    is_styled: the text's escape sequences are our own styles, and stay.
    """
    to: TextIO = sys.stdout if stream is None else stream
    to.write(text.translate(CONTROLS) if to.isatty() and not is_styled else text)
    to.flush()


def note(text: str, *, style: str = "dim") -> None:
    """Write a line on stderr, which is not part of the answer."""
    print(paint(_wrapped(text.translate(CONTROLS)), style, sys.stderr), file=sys.stderr, flush=True)


def warn(message: Warning | str, *_: object) -> None:
    """A warning in one line; has the signature of `warnings.showwarning`."""
    say(" ".join(str(message).split()), style="yellow")


def cut(text: str) -> str:
    """The beginning of a text, where that is too long to be quoted."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def say(sentence: str, *, style: str) -> None:
    """A sentence on stderr, the program's name in a style before it."""
    sentence = QUOTED.sub(lambda found: cut(found[0]) + (found[0][-1] if found[0][0] in QUOTES else ""), sentence)
    name, _, rest = _wrapped(f"llamita: {sentence}").partition(" ")
    print(f"{paint(name, style, sys.stderr)} {rest}", file=sys.stderr, flush=True)


def _wrapped(text: str) -> str:
    """A text for stderr, its lines broken between words where that is a terminal."""
    if not sys.stderr.isatty():
        return text
    lines = Wrap(columns)
    return lines.push(text) + lines.flush()


def restore() -> None:
    """Show the cursor again, which a spinner that was interrupted may have left hidden."""
    if has_color(sys.stderr):
        sys.stderr.write("\033[?25h")


@contextmanager
def waiting(message: str, *, is_quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Say what is being waited for, on a terminal and only as long as it lasts; what it gives takes other words."""
    if is_quiet or not has_color(sys.stderr):
        yield lambda words: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(message, "dim"), spinner="dots", spinner_style="dim") as status:
        yield lambda words: status.update(Text(words, "dim"))
