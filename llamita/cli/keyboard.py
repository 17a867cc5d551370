"""What a person types: lines with a history, messages of several lines, and an editor for longer ones."""

import glob
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llamita.cli import terminal
from llamita.errors import UsageError

try:
    import readline
except ImportError:  # Windows has none: input() does without a history
    readline: Any = None

PROMPT, MORE = "> ", ". "
FENCE = '"""'
FILE_COMMANDS = ("/load ", "/save ")
HISTORY_LINES = 1000


class Said(NamedTuple):
    """What was typed: a message, or a command."""

    text: str
    is_command: bool = False


class Entry:
    '''A message as its lines come: one line, several between """, or several of which each but the last ends in \\.'''

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_fenced = False

    @property
    def is_open(self) -> bool:
        """Whether more lines belong to it."""
        return bool(self._lines) or self._is_fenced

    def push(self, line: str) -> Said | None:
        """Take a line; returns what was said once it is complete. Nothing is ever said by an empty one."""
        if not self.is_open and line.lstrip().startswith(FENCE):
            self._is_fenced, line = True, line.lstrip().removeprefix(FENCE)
            if not line.strip():
                return None
        if self._is_fenced:
            if not line.rstrip().endswith(FENCE):
                self._lines.append(line)
                return None
            return self._said([*self._lines, line.rstrip().removesuffix(FENCE)])
        if line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        return self._said([*self._lines, line])

    def rest(self) -> Said | None:
        """What there is where no line comes any more."""
        return self._said(self._lines)

    def _said(self, lines: Sequence[str]) -> Said | None:
        text = "\n".join(lines).strip("\n" if self._is_fenced else None)
        is_command = text.startswith("/") and not self._is_fenced
        self._lines, self._is_fenced = [], False
        return Said(text, is_command) if text.strip() else None


def joined(lines: Iterable[str]) -> Iterator[Said]:
    """What is said in lines that are piped in."""
    entry = Entry()
    for line in lines:
        if said := entry.push(line):
            yield said
    if said := entry.rest():
        yield said


def history_file() -> Path:
    """Where lines are kept from one chat to the next: $XDG_STATE_HOME/llamita, ~/.local/state without it."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "llamita" / "chat_history"


class Keyboard:
    """Lines from a person, with arrow keys and a history where the system has readline.

    history: the file that lines are kept in; None keeps none. words: what the tab key completes.
    """

    def __init__(self, *, history: Path | None = None, words: Sequence[str] = ()) -> None:
        self._history = history
        self._words = words
        if readline is None:
            return
        readline.set_history_length(HISTORY_LINES)
        readline.set_completer_delims(" ")
        readline.set_completer(self._completed)
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message; Python turns it off
        if history is not None:
            with suppress(OSError):  # the first time there is none; a chat goes on without
                readline.read_history_file(history)

    def said(self) -> Iterator[Said]:
        """What is typed, until Ctrl-D or a second Ctrl-C at the prompt. Ctrl-C drops what was begun."""
        entry, is_warned = Entry(), False
        while True:
            try:
                line = self.line(MORE if entry.is_open else PROMPT)
            except EOFError:
                terminal.note("")
                return
            except KeyboardInterrupt:
                if is_warned:
                    terminal.note("")
                    raise
                is_warned = not entry.is_open
                terminal.note("\n(Ctrl-C again or Ctrl-D leaves)" if is_warned else "\n(dropped)")
                entry = Entry()
                continue
            is_warned = False
            if said := entry.push(line):
                yield said

    def line(self, prompt: str, *, begun: str = "") -> str:
        """One line, `begun` already typed; where the answers go to a file, the prompt does not. EOFError at the end."""
        if not sys.stdout.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
            try:
                return input()
            except RuntimeError:  # the process was started without stdin
                raise EOFError from None
        if readline is not None and begun:
            readline.set_startup_hook(lambda: readline.insert_text(begun))
        try:
            line = input(painted(prompt))
        finally:
            if readline is not None:
                readline.set_startup_hook(None)
        self._remember()
        return line

    def _remember(self) -> None:
        if readline is None or self._history is None:
            return
        with suppress(OSError):  # a chat goes on where no file can be kept
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            readline.write_history_file(self._history)

    def _completed(self, text: str, number: int) -> str | None:
        """The number-th command, setting or file that begins with a text, for readline."""
        line = readline.get_line_buffer()
        if line.startswith(FILE_COMMANDS):
            fits = sorted(glob.glob(glob.escape(os.path.expanduser(text)) + "*"))  # noqa: PTH111, PTH207, as typed
        else:
            known = self._words if line.startswith("/") else ()
            fits = [word[len(line) - len(text) :] + " " for word in known if word.startswith(line)]
        return fits[number] if number < len(fits) else None


def painted(prompt: str) -> str:
    """The prompt in colour, its escape sequences marked as of no width for readline."""
    if not terminal.has_color(sys.stdout):
        return prompt
    return f"\001\033[1;32m\002{prompt}\001\033[0m\002"


def editor() -> list[str]:
    """The command of $VISUAL or $EDITOR; empty where neither is set."""
    return shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "")


def edited(text: str, command: Sequence[str]) -> str:
    """The text as it comes back from an editor. Raises UsageError where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message.md"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            subprocess.run([*command, str(path)], check=True)
            return path.read_text(encoding="utf-8").strip()
        except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
            raise UsageError(f"the editor {command[0]!r} failed ({error}): set EDITOR to another one") from error
