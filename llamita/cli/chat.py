"""`llamita chat`: turn by turn with a model, in this process."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from llamita.cli import arguments, model, stdin, terminal
from llamita.cli.conversation import Conversation
from llamita.errors import LlamitaError, UnsupportedError

NAME = "chat"
HELP = "talk with a model"
EXAMPLES = """\
  llamita chat
  llamita chat -s "Answer in one sentence." -t 0.3
  llamita chat -m path/to/model
  printf 'Hello\\nTell me a story.\\n' | llamita chat
"""
PROMPT = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, how to write."""
    arguments.add_model(parser)
    arguments.add_writing(parser)


def run(args: argparse.Namespace) -> int:
    """Answer line by line: what is piped in, or what is typed until /bye or Ctrl-D."""
    is_piped = stdin.is_piped()
    llm = model.load(args)
    if llm.tokenizer.chat_template is None:
        raise UnsupportedError(f"{llm.name} has no chat template, it was not made for chats: use llamita generate")
    seed = model.chosen_seed(args)
    chat = Conversation(llm, options=arguments.writing(args), seed=seed, system=args.system)
    if is_piped:
        for line in stdin.lines():
            _print_answer(chat, line)
        return 0
    if not args.quiet:
        terminal.note(
            f"{llm.name}, {llm.model.num_parameters() / 1e6:,.1f} M parameters, reads {llm.context_length} tokens"
        )
        terminal.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    for line in typed():
        if not take(chat, line):
            break
    return 0


def take(chat: Conversation, line: str) -> bool:
    """One typed line, a command or a turn; whether to go on. An error is of this turn only."""
    try:
        if line.startswith("/"):
            return obey(chat, line)
        _print_answer(chat, line)
    except KeyboardInterrupt:
        terminal.note("(stopped)")
    except LlamitaError as error:
        terminal.warn(str(error))
    return True


def typed() -> Iterator[str]:
    """The lines that are typed, empty ones left out, until Ctrl-D or a second Ctrl-C."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401, gives input() its history and its arrow keys

    is_warned = False
    while True:
        try:
            line = _line()
        except EOFError:
            terminal.note("")
            return
        except KeyboardInterrupt:
            if is_warned:
                terminal.note("")
                raise
            is_warned = True
            terminal.note("\n(Ctrl-C again or Ctrl-D leaves)")
            continue
        is_warned = False
        if line.strip():
            yield line


def _line() -> str:
    """One line from the keyboard; where the answers go to a file, the prompt does not."""
    if not sys.stdout.isatty():
        print(paint_prompt(), end="", file=sys.stderr, flush=True)
        return input()
    return input(paint_prompt())


def paint_prompt() -> str:
    """The prompt in colour, its escape sequences marked as of no width for readline."""
    if not terminal.has_color(sys.stdout):
        return PROMPT
    return f"\001\033[1;32m\002{PROMPT}\001\033[0m\002"


def _print_answer(chat: Conversation, text: str) -> None:
    """Print an answer as it is written, and end its line."""
    piece = ""
    try:
        for piece in chat.answer(text):
            terminal.show(piece)
    finally:
        if piece and not piece.endswith("\n"):
            terminal.show("\n")


def obey(chat: Conversation, line: str) -> bool:
    """Run a command; whether to go on. Raises UsageError for an unknown one."""
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        raise arguments.unknown("command", name, COMMANDS, "/help lists them")
    return COMMANDS[name][1](chat, rest.strip())


def _help(chat: Conversation, rest: str) -> bool:
    for name, (does, _) in COMMANDS.items():
        terminal.note(f"{name:<9} {does}")
    return True


def _system(chat: Conversation, rest: str) -> bool:
    if rest:
        chat.system = rest
        chat.reset()
    terminal.note(f"system: {chat.system or '(none)'}")
    return True


def _reset(chat: Conversation, rest: str) -> bool:
    chat.reset()
    terminal.note("(all turns forgotten)")
    return True


def _bye(chat: Conversation, rest: str) -> bool:
    return False


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], bool]]] = {
    "/help": ("list the commands", _help),
    "/system": ("show the instructions; /system TEXT gives others and starts anew", _system),
    "/reset": ("forget all turns", _reset),
    "/bye": ("leave, as Ctrl-D does", _bye),
}
