"""What verbs take: the options that several share, their twins in the environment, and errors that help."""

import argparse
import difflib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from llamita.errors import UsageError

WIDTH = 100  # of help, on terminals that have so much
# An argument, and the option of `LLM.generate` that it gives.
WRITING = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
}
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in one column, their help in another, a line each."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns - 2, WIDTH))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-p, --prompt TEXT`, as Python 3.13 writes it, in all versions."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        values = self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {values}"


class Parser(argparse.ArgumentParser):
    """One verb's options, and those that every verb has.

    Each --option has a twin LLAMITA_OPTION in the environment, which the option overrules.
    """

    def __init__(self, verb: str, does: str, examples: str = "") -> None:
        super().__init__(
            prog=f"llamita {verb}",
            description=does[:1].upper() + does[1:],
            epilog="examples:\n" + examples.strip("\n") if examples else None,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._everywhere = self.add_argument_group("every verb")
        self._everywhere.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
        self._everywhere.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
        self._everywhere.add_argument("--quantize", metavar="FORMAT", help="fewer bits a weight: q8_0, q4_k, int8, ...")
        self._everywhere.add_argument("--attn", metavar="BACKEND", help="sdpa, eager, flex, fixed or flash_attention_2")
        self._everywhere.add_argument(
            "--kernels",
            default="auto",
            metavar="auto|off",
            help="write with the CPU's own kernels, or with torch's alone",
        )
        self._everywhere.add_argument(
            "--compile", default="off", metavar="PLAN", help="regional or full: let torch compile the model; off"
        )
        self._everywhere.add_argument(
            "--deterministic", action="store_true", help="a text never depends on the rest of its batch; slower"
        )
        self._everywhere.add_argument("--offline", action="store_true", help="use only what was fetched before")
        self._everywhere.add_argument("-q", "--quiet", action="store_true", help="print the answer and nothing else")
        self._everywhere.add_argument("--debug", action="store_true", help="show where an error happened")
        self._everywhere.add_argument("-h", "--help", action="help", help="show this")

    def format_help(self) -> str:
        """The help text: the verb's own options first, and a usage line that does not list them all."""
        own = [action.metavar or action.dest.upper() for action in self._get_positional_actions()]
        self.usage = " ".join([self.prog, *(f"[{name}]" for name in own), "[options]"])
        self._action_groups.sort(key=lambda group: group is self._everywhere)
        return super().format_help()

    def read(self, words: Sequence[str], environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
        """The values of the words, of the environment where these say nothing, and of the defaults last."""
        self._take(environment)
        known, rest = self.parse_known_args(words)
        if rest and rest[0].startswith("-"):
            options = [option for action in self._actions for option in action.option_strings]
            raise unknown("option", rest[0].partition("=")[0], options, f"{self.prog} --help lists them")
        if rest:
            raise UsageError(f"{rest[0]!r} is one word too many: put quotes around a text of several words")
        return known

    def error(self, message: str) -> NoReturn:
        """A wrong command line, said in one sentence."""
        raise UsageError(f"{message.removeprefix('argument ')}: {self.prog} --help shows what fits")

    def _take(self, environment: Mapping[str, str]) -> None:
        """Make what the environment says the options' defaults."""
        for action in self._actions:
            names = [
                f"LLAMITA_{name[2:].upper().replace('-', '_')}" for name in action.option_strings if name[1] == "-"
            ]
            for name in names:
                if name in environment and action.dest != "help":
                    action.default = _value(name, environment[name], action)


def _value(name: str, text: str, action: argparse.Action) -> Any:
    """What the environment's text means for an option."""
    if isinstance(action, argparse._StoreTrueAction):
        if text.lower() not in YES + NO:
            raise UsageError(f"{name} is {text!r}: set it to 1 or 0")
        return text.lower() in YES
    try:
        value = action.type(text) if callable(action.type) else text
    except (ValueError, argparse.ArgumentTypeError):
        kind = getattr(action.type, "__name__", "value")
        raise UsageError(f"{name} is {text!r}: set it to a valid {kind}, or unset it") from None
    return [value] if isinstance(action, argparse._AppendAction) else value


def unknown(kind: str, name: str, known: Iterable[str], remedy: str) -> UsageError:
    """The error for a name that is not there, with the nearest one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    guess = f"did you mean {nearest[0]}? " if nearest else ""
    return UsageError(f"there is no {kind} {name}: {guess}{remedy}")


def add_model(parser: argparse.ArgumentParser, *, is_positional: bool = False) -> None:
    """Which model: by -m, and where it is what the verb is about, also by its bare name."""
    what = "cria (the default), a folder, a .gguf file, or organisation/name on the hub"
    if is_positional:
        parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help=what)
    parser.add_argument("-m", "--model", metavar="MODEL", help="the same, as an option" if is_positional else what)


def add_writing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How to write; what is not given comes from the checkpoint. Returns the group, for what one verb alone has."""
    group = parser.add_argument_group("writing")
    group.add_argument("-s", "--system", metavar="TEXT", help="instructions that the answer is to follow")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help="write at most so many tokens")
    group.add_argument("-t", "--temperature", type=float, metavar="T", help="0 is greedy, higher is more varied")
    group.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens, 0 is all")
    group.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that make up P together")
    group.add_argument("--min-p", type=float, metavar="P", help="only tokens at least P times as likely as the best")
    group.add_argument("--repeat-penalty", type=float, metavar="F", help="above 1 has the model repeat less, 1 is off")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="so much off every token already written")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="so much off for every time it was written")
    group.add_argument("--seed", type=int, help="the same seed writes the same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end where this text comes up (repeatable)")
    return group


def writing(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `LLM.generate` that were given."""
    return {option: value for name, option in WRITING.items() if (value := getattr(arguments, name)) is not None}
