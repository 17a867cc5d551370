"""`llamita VERB ...`: imports the chosen verb and nothing else, and turns every failure into one sentence.

A verb is a module of this package: HELP, one sentence; EXAMPLES, shown under its --help, if it has any;
add_arguments(parser); run(arguments) -> exit code.
"""

# Nothing dear up here: what is imported before `main` runs cannot be interrupted politely.
import atexit
import gc
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from llamita.errors import UsageError

VERBS = {
    "generate": "continue a text",
    "chat": "talk with a model",
    "show": "describe a model without loading it",
    "tokenize": "show the tokens of a text",
    "convert": "write a GGUF file or a folder",
    "quantize": "store a model in fewer bits",
    "verify": "compare with transformers, number by number",
    "serve": "serve a model over HTTP",
    "batch": "answer a file of requests",
    "replay": "write the answer of a receipt again",
    "train": "train a model on text or chats",
    "finetune": "adapt a model to examples or preferences",
    "eval": "measure perplexity and scores",
    "bench": "measure speed and memory",
}
HELPS = ("help", "-h", "--help")
DEFAULT = "generate"  # when text is piped in and no verb is named

USAGE = """\
usage: llamita VERB [options]
       ... | llamita [options]    continue the text that is piped in

verbs:
{verbs}
  help       show this, or with a verb its options
  version    show which version this is

Every verb runs without arguments, on the embedded model cria.
`llamita VERB --help` shows options, defaults and examples.

examples:
  llamita generate "Once upon a time"
  echo "Once upon a time" | llamita --seed 1
  llamita generate -m org/name "Once upon a time"
  llamita chat

exit codes: 0 done, 1 failure, 2 wrong usage, 3 not found, 4 no access,
5 out of memory, 6 not supported, 130 interrupted
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line, sys.argv's by default; returns the exit code and prints what went wrong to stderr."""
    words = list(sys.argv[1:] if words is None else words)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # at its exit Python looks for circles among all objects of torch and LLVM, for nothing
    try:
        from llamita.cli import terminal

        terminal.open_streams()
        code = run(words)
        sys.stdout.flush()  # here, where a reader who has left is still no traceback
    except BaseException as error:
        from llamita.cli import errors

        return errors.report(error, words)
    return code


def run(words: list[str]) -> int:
    """Run what the words ask for."""
    try:
        return _run(words)
    except SystemExit as leaving:  # argparse, after --help
        return leaving.code if isinstance(leaving.code, int) else 0


def _run(words: list[str]) -> int:
    if not words:
        from llamita.cli.stdin import is_piped

        words = [DEFAULT] if is_piped() else ["--help"]
    if words[0] in HELPS and (words[0] != "help" or len(words) == 1 or words[1] in (*HELPS, "version")):
        print(USAGE.format(verbs="\n".join(f"  {verb:<10} {does}" for verb, does in VERBS.items())), end="")
        return 0
    if words[0] == "help":
        return _run_verb(words[1], ["--help"])
    if words[0] in ("-V", "--version", "version"):
        from llamita import __version__

        print(f"llamita {__version__}")
        return 0
    if words[0].startswith("-"):
        return _run_verb(DEFAULT, words, is_named=False)
    return _run_verb(words[0], words[1:])


def _run_verb(verb: str, words: list[str], *, is_named: bool = True) -> int:
    from llamita.cli import arguments, ranks, terminal

    if verb not in VERBS:
        raise _no_verb(verb)
    module = import_module(f"llamita.cli.{verb}")
    parser = arguments.Parser(verb, module.HELP, getattr(module, "EXAMPLES", ""))
    module.add_arguments(parser)
    with ranks.saying_once():
        given = parser.read(words)
    if not is_named and (late := getattr(given, "prompt", None)) in VERBS:
        raise UsageError(f"{late} comes after an option: write the verb first, llamita {late} ...")
    warnings.showwarning = terminal.warn
    return module.run(given)


def _no_verb(word: str) -> UsageError:
    """The error for a first word that is no verb: another program's verb, a model, or a text."""
    from llamita.cli import arguments, habits, names
    from llamita.cli.terminal import cut

    if not word.strip():
        return UsageError("the first word is empty: llamita --help lists the verbs")
    if advice := habits.verb(word):
        return UsageError(f"there is no verb {word}: {advice}")
    if names.is_model(word) or names.is_model(f"{word}.gguf"):
        shown = cut(word)
        return UsageError(
            f"{shown} is a model: llamita chat -m {shown} talks with it, llamita show {shown} describes it"
        )
    remedy = f'llamita --help lists them, or quote a text: llamita generate "{cut(word)} ..."'
    return arguments.unknown("verb", word, (*VERBS, "help", "version"), remedy)
