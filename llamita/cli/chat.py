"""`llamita chat`: turn by turn with a model, in this process."""

import argparse
import sys
from contextlib import suppress

from llamita.cli import arguments, model, stdin, terminal
from llamita.cli.commands import COMMANDS, SETTINGS, Session, check_setting, run_command
from llamita.cli.conversation import Conversation
from llamita.cli.keyboard import PROMPT, Keyboard, Said, history_file, joined
from llamita.errors import LlamitaError, UnsupportedError

NAME = "chat"
HELP = "talk with a model"
EXAMPLES = """\
  llamita chat
  llamita chat "Tell me a story."
  llamita chat -s "Answer in one sentence." -t 0.3
  llamita chat -m path/to/model
  printf 'Hello\\nTell me a story.\\n/tokens\\n' | llamita chat
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to say first, which model, how to write, what to keep."""
    parser.add_argument("message", nargs="?", help="what to say first (default: what is typed)")
    arguments.add_model(parser)
    arguments.add_writing(parser)
    parser.add_argument("--no-history", action="store_true", help="keep no file of the lines that are typed")


def run(args: argparse.Namespace) -> int:
    """Answer what is piped in, or what is typed until /bye or Ctrl-D; lines that begin with / are commands."""
    model.look_for_a_name(args.message, is_quiet=args.quiet)
    first = [] if args.message is None else [Said(stdin.checked(args.message, "message"))]
    session = Session(_conversation(args), is_quiet=args.quiet)
    with suppress(EOFError):  # /bye
        if stdin.is_piped():
            for said in first:
                _do(session, said)
            for said in joined(stdin.lines()):
                _do(session, said)
            return 0
        if first and (sys.stdin is None or not sys.stdin.isatty()):  # nobody can type, as with < /dev/null
            _do(session, *first)
            return 0
        keyboard = session.keyboard = _keyboard(args)
        if not args.quiet:
            _greet(session.chat)
        for said in first:
            if sys.stdout.isatty() and not args.quiet:
                terminal.note(f"{PROMPT}{said.text}")
            take(session, said)
        for said in keyboard.said():
            take(session, said)
    return 0


def take(session: Session, said: Said) -> None:
    """A command or a turn of a person. What goes wrong is of this turn only, and so is Ctrl-C."""
    try:
        _do(session, said)
    except KeyboardInterrupt:
        terminal.note("(stopped)")
    except LlamitaError as error:
        terminal.warn(str(error))


def _do(session: Session, said: Said) -> None:
    if said.is_command:
        run_command(session, said.text)
    else:
        session.say(session.chat.answer(said.text))


def _conversation(args: argparse.Namespace) -> Conversation:
    """An empty conversation with the model; raises UnsupportedError where that knows no chats."""
    llm, options = model.load(args), arguments.writing(args)
    for name, value in options.items():
        check_setting(name, value)
    if llm.tokenizer.chat_template is None:
        from llamita.tokenizer import chat_formats

        form = chat_formats.find(llm.tokenizer)
        if form is None:
            raise UnsupportedError(f"{llm.name} has no chat template, it was not made for chats: use llamita generate")
        if not args.quiet:
            terminal.note(f"{llm.name} has no chat template: taking the format of {form.name}")
    return Conversation(llm, options=options, seed=model.chosen_seed(args), system=args.system)


def _keyboard(args: argparse.Namespace) -> Keyboard:
    is_kept = not args.no_history and sys.stdin is not None and sys.stdin.isatty()
    words = [*COMMANDS, *(f"/set {name}" for name in SETTINGS)]
    return Keyboard(history=history_file() if is_kept else None, words=words)


def _greet(chat: Conversation) -> None:
    llm = chat.llm
    size = f"{llm.model.num_parameters() / 1e6:,.1f} M parameters"
    terminal.note(f"{llm.name}, {size}, reads {llm.context_length} tokens")
    terminal.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
