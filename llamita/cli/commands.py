"""The commands of a chat, which begin with /."""

import json
import math
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, terminal, tokens, transcript
from llamita.cli.conversation import Conversation
from llamita.cli.keyboard import Keyboard, edited, editor
from llamita.cli.screen import Screen
from llamita.errors import UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from llamita.generation.logprobs import TokenLogprob

DEFAULT = "default"
FORCE = "--force"  # of /save: write over a file that holds something else
DRAWING = ("temperature", "top_p", "top_k", "min_p")  # any of these settings makes the model draw
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass
class Session:
    """A conversation, and where its lines come from: a keyboard, or None for a pipe."""

    chat: Conversation
    keyboard: Keyboard | None = None
    is_quiet: bool = False

    def say(self, pieces: Generator[str, None, None]) -> None:
        """Print an answer as it is written; end its line, say whether it was cut, and how full the context is."""
        screen = Screen(sys.stdout)
        try:
            with closing(pieces):  # on Ctrl-C this adds the text so far to the turns at once
                for piece in pieces:
                    screen.write(piece)
        finally:
            screen.end_line()
        if self.chat.is_cut and not self.is_quiet:
            terminal.note("(cut at the limit of tokens)")
        if self.keyboard is not None and not self.is_quiet:
            terminal.note(self.meter())

    def meter(self) -> str:
        """How much of the context is used."""
        used, limit = self.chat.used(), self.chat.llm.context_length
        return f"({used}/{limit} tokens)"


def run_command(session: Session, line: str) -> None:
    """Run a command. Raises UsageError for an unknown one, EOFError for the one that leaves."""
    name, _, rest = line.strip().partition(" ")
    name = SYNONYMS.get(name, name)
    if name not in COMMANDS:
        raise arguments.unknown("command", name, COMMANDS, "/help lists them")
    COMMANDS[name][1](session, rest.strip())


def _help(session: Session, rest: str) -> None:
    for name, (does, _) in COMMANDS.items():
        terminal.note(f"{name:<9} {does}")
    terminal.note('A message of several lines stands between """ and """, or has lines that end in \\')


def _set(session: Session, rest: str) -> None:
    name, _, text = rest.partition(" ")
    if name and name not in SETTINGS:
        raise arguments.unknown("setting", name, SETTINGS, "/set lists them")
    if text:
        _change(session.chat, name, text.strip())
    for shown in [name] if name else SETTINGS:
        terminal.note(f"{shown:<18} {_setting(session.chat, shown)}")


def _change(chat: Conversation, name: str, text: str) -> None:
    """Give a setting a value, or its default back. Raises UsageError for one that does not fit."""
    if text == DEFAULT and name != "seed":
        chat.options.pop(name, None)
        return
    try:
        value = SETTINGS[name](text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}: give a number, or {DEFAULT}") from None
    if name == "seed":
        chat.seed = value
        return
    check_setting(name, value)
    chat.options[name] = value


def check_setting(name: str, value: Any) -> None:
    """Raise UsageError for a value that no answer can be written with."""
    from llamita.generation.sequence import listed_stops
    from llamita.sampling.params import SamplingParams

    if name == "stop":
        listed_stops(value)
    if name == "max_tokens" and value < 1:
        raise UsageError(f"max_tokens is {value}: it must be at least 1")
    if name in (*DRAWING, *PENALTIES):
        SamplingParams(**{name: value})


def _setting(chat: Conversation, name: str) -> str:
    """The value of a setting, and where it comes from unless it was set here."""
    from llamita.sampling.params import SamplingParams

    if name == "seed":
        return str(chat.seed)
    if name in chat.options:
        return json.dumps(chat.options[name], ensure_ascii=False)
    saved = chat.llm.model.generation_config
    if name in DRAWING and not saved.get("do_sample") and chat.options.keys().isdisjoint(DRAWING):
        return "0, the most probable token each time (the model's own)" if name == "temperature" else "unused"
    if name in (*DRAWING, *PENALTIES):
        neutral = f"{getattr(SamplingParams(), name) or 0:g}"
        return neutral if saved.get(name) is None else f"{saved[name]:g} (the model's own)"
    return "to the end of the context" if name == "max_tokens" else "none"


def _text(text: str) -> list[str]:
    r"""A stop text as it is typed, in quotes or not, \n and \t spelled out."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return [text.replace("\\n", "\n").replace("\\t", "\t")]


def _system(session: Session, rest: str) -> None:
    if rest:
        session.chat.system = rest
        session.chat.reset()
    terminal.note(f"system: {session.chat.system or '(none)'}")


def _retry(session: Session, rest: str) -> None:
    session.say(session.chat.retry())


def _edit(session: Session, rest: str) -> None:
    old = session.chat.question
    new = rest or _asked_again(session, old)
    if not new.strip() or (new == old and not rest):
        terminal.note("(unchanged)")
        return
    session.say(session.chat.edit(new))


def _asked_again(session: Session, old: str) -> str:
    if session.keyboard is None:
        raise UsageError("there is no keyboard to edit with: give the new text, /edit TEXT")
    if (command := editor()) and sys.stdout.isatty():
        return edited(old, command)
    try:
        return session.keyboard.line("edit> ", begun=old)
    except (KeyboardInterrupt, EOFError):  # of the edit, not of the chat
        terminal.note("")
        return old


def _undo(session: Session, rest: str) -> None:
    text = " ".join(session.chat.undo().split())
    terminal.note(f"(taken back: {text if len(text) <= 60 else text[:59] + '…'})")


def _reset(session: Session, rest: str) -> None:
    session.chat.reset()
    terminal.note("(all turns forgotten)")


def _tokens(session: Session, rest: str) -> None:
    from llamita.tokenizer.token_bytes import TokenTexts

    tokenizer = session.chat.llm.tokenizer
    spelling = TokenTexts(tokenizer)
    prompt, written = session.chat.last_answer()
    for line in tokens.table([f"{token_id:>6} {tokens.quoted(spelling.of(token_id))}" for token_id in written]):
        terminal.note(line)
    characters = len(tokenizer.decode(written))
    terminal.note(f"{len(written)} tokens, {characters} characters, after a prompt of {len(prompt)} tokens")


def _probs(session: Session, rest: str) -> None:
    llm = session.chat.llm
    prompt, written = session.chat.last_answer()
    entries = tokens.reread(llm, prompt, written, top=1)
    if terminal.has_color(sys.stderr):
        aligner = tokens.TokenAligner(llm.tokenizer)
        text = llm.tokenizer.decode(written)
        tokens.show(aligner.runs(text, entries), Screen(sys.stderr))
        tokens.show_legend()
    else:
        cells = [f"{entry.probability:>4.0%} {tokens.quoted(entry.text)}" for entry in entries]
        for line in tokens.table(cells):
            terminal.note(line)
    for line in _surprises(entries):
        terminal.note(line)


def _surprises(entries: "list[TokenLogprob]") -> Iterator[str]:
    """The three least probable tokens, each with the most probable token at its position, and the perplexity."""
    for entry in sorted(entries, key=lambda entry: entry.logprob)[:3]:
        best = entry.top[0]
        if best.token_id != entry.token_id:
            better = f"{tokens.quoted(best.text)} {best.probability:.0%}"
            yield f"{tokens.quoted(entry.text)} {entry.probability:.1%}, where {better} was most probable"
    yield f"perplexity {math.exp(-sum(entry.logprob for entry in entries) / len(entries)):.2f}"


def _save(session: Session, rest: str) -> None:
    name = rest.removeprefix(f"{FORCE} ").removesuffix(f" {FORCE}").strip()
    path = _path("" if name == FORCE else name, "/save FILE")
    transcript.save(path, session.chat.messages, model=session.chat.llm.name, force=name != rest)
    terminal.note(f"({len(session.chat.messages)} messages saved in {path})")


def _load(session: Session, rest: str) -> None:
    path = _path(rest, "/load FILE")
    messages = transcript.load(path)
    session.chat.resume(messages)
    terminal.note(f"({len(messages)} messages from {path}) {session.meter()}")
    if session.chat.turns and session.chat.turns[-1]["role"] == "user":
        terminal.note("(the last one has no answer: /retry gives it one)")


def _path(rest: str, form: str) -> Path:
    if not rest:
        raise UsageError(f"no file is named: write {form}")
    return named_path(rest)


def _bye(session: Session, rest: str) -> None:
    raise EOFError


# What a setting's text means.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    **dict.fromkeys(PENALTIES, float),
    "max_tokens": int,
    "seed": int,
    "stop": _text,
}
COMMANDS: dict[str, tuple[str, Callable[[Session, str], None]]] = {
    "/help": ("list the commands", _help),
    "/set": (f"show the settings; /set NAME VALUE changes one, VALUE may be {DEFAULT}", _set),
    "/system": ("show the instructions; /system TEXT gives others and starts again", _system),
    "/retry": ("answer once more", _retry),
    "/edit": ("change your last message, in $EDITOR or here, and have it answered", _edit),
    "/undo": ("take back your last message and its answer", _undo),
    "/reset": ("forget all turns", _reset),
    "/tokens": ("show the last answer token by token", _tokens),
    "/probs": ("show how likely each token of the last answer was", _probs),
    "/save": (f"/save FILE writes the conversation as JSON, /save FILE {FORCE} over another file", _save),
    "/load": ("/load FILE goes on from such a file", _load),
    "/bye": ("leave, as Ctrl-D does", _bye),
}
SYNONYMS = {"/?": "/help", "/clear": "/reset", "/exit": "/bye", "/quit": "/bye"}
