"""What verbs take: the options that several share, their twins in the environment, and errors that help."""

import argparse
import difflib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from llamita.cli import habits
from llamita.cli.names import understood
from llamita.cli.terminal import cut
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
# What the verbs take that write by `model.load`.
WRITES = ("threads", "device", "dtype", "quantize", "attn", "kernels", "compile", "deterministic", "offline")
# What a verb does something with, of what several verbs have.
TAKES = {
    "generate": ("adapter", "tp", *WRITES),
    "chat": ("adapter", *WRITES),
    "serve": ("tp", *WRITES),
    "batch": WRITES,
    "replay": ("adapter", *WRITES),
    "show": ("adapter", "offline"),
    "tokenize": ("offline",),
    "convert": ("dtype", "quantize", "offline"),
    "quantize": ("threads", "device", "dtype", "attn", "offline"),
    "verify": ("threads", "offline"),
    "train": ("device", "offline"),
    "finetune": ("device", "offline"),
    "eval": ("adapter", *WRITES),
    "bench": ("dtype",),
}
SHARED: dict[str, dict[str, Any]] = {
    "adapter": {"metavar": "FOLDER", "help": "add the LoRA adapter of this folder, ours or peft's (default: none)"},
    "tp": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "tensor parallel: processes of torchrun that share each matrix (default: 1)",
    },
    "threads": {
        "type": int,
        "metavar": "N",
        "help": "of the CPU (default: one a core; fewer are faster where others work)",
    },
    "device": {"default": "auto", "help": "auto (the default), cpu, cuda, cuda:1, ..."},
    "dtype": {"default": "auto", "help": "auto (the default: the checkpoint's own), float32, bfloat16 or float16"},
    "quantize": {"metavar": "FORMAT", "help": "fewer bits a weight: q8_0, q4_k, int8, ... (default: as stored)"},
    "attn": {"metavar": "BACKEND", "help": "sdpa (the default), eager, flex, fixed or flash_attention_2"},
    "kernels": {
        "default": "auto",
        "metavar": "auto|off",
        "help": "write with the CPU's own kernels (default: auto), or with torch's alone",
    },
    "compile": {
        "default": "off",
        "metavar": "PLAN",
        "help": "regional or full: let torch compile the model (default: off)",
    },
    "deterministic": {
        "action": "store_true",
        "help": "a text never depends on the rest of its batch; CPU kernels keep that anyway",
    },
    "offline": {"action": "store_true", "help": "use only what was fetched before"},
}
MODELS = ("model", "draft_model", "checkpoint")  # the arguments that name one
NO_NUMBER = re.compile(r": invalid (int|float) value:( .*)", re.DOTALL)  # argparse's words for a value of an option
NUMBERS = {"int": "whole number", "float": "number"}
NEAR = 0.7  # how alike two names are, of 1, where one may have been meant by the other
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in one column, their help in another, a line each."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns - 2, WIDTH))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help, and the default where there is one that it does not tell."""
        text = action.help or ""
        has_default = action.default not in (None, False, argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if has_default and "default" not in text else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-p, --prompt TEXT`, as Python 3.13 writes it, in all versions."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        values = self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {values}"


class _Store(argparse._StoreAction):
    """Stores a value, and notes what was given as a word rather than by an option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        super().__call__(parser, namespace, values, option)
        if option is None:
            namespace.words = {*getattr(namespace, "words", ()), self.dest}


class _Append(argparse._AppendAction):
    """Adds a value to those that the words give; what the environment gives is overruled by the first of them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest, None) is self.default:
            setattr(namespace, self.dest, None)
        super().__call__(parser, namespace, values, option)


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
        self.verb = verb
        self.register("action", None, _Store)
        self.register("action", "append", _Append)
        machine = self.add_argument_group("model and machine")
        for name in TAKES[verb]:
            machine.add_argument(f"--{name}", **SHARED[name])
        self._everywhere = self.add_argument_group("every verb")
        self._everywhere.add_argument("-q", "--quiet", action="store_true", help="print the answer and nothing else")
        self._everywhere.add_argument("--debug", action="store_true", help="show where an error happened")
        self._everywhere.add_argument("-h", "--help", action="help", help="show this")
        self._last = (machine, self._everywhere)

    @property
    def options(self) -> list[str]:
        """The names of all options."""
        return [option for action in self._actions for option in action.option_strings]

    def format_help(self) -> str:
        """The help text: the verb's own options first, and a usage line that does not list them all."""
        own = [action.metavar or action.dest.upper() for action in self._get_positional_actions()]
        self.usage = " ".join([self.prog, *(f"[{name}]" for name in own), "[options]"])
        self._action_groups.sort(key=lambda group: self._last.index(group) if group in self._last else -1)
        return super().format_help()

    def read(self, words: Sequence[str], environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
        """The values of the words, of the environment where these say nothing, and of the defaults last."""
        self._take(environment)
        self._look_for_habits(words)
        known, rest = self.parse_known_args(words)
        known.given = self._given(words)
        if rest and rest[0].startswith("-"):
            raise self._unknown(rest[0].partition("=")[0])
        if rest:
            raise UsageError(f"{cut(rest[0])!r} is one word too many: {self._instead(cut(rest[0]))}")
        if both := sorted(known.given & getattr(known, "words", set())):
            raise UsageError(f"{both[0]} is given twice, as a word and by its option: leave one of them out")
        for name in MODELS:
            if isinstance(getattr(known, name, None), str):
                setattr(known, name, understood(getattr(known, name)))
        return known

    def _instead(self, word: str) -> str:
        """What may have been meant by a word too many: a text, or the model of a verb that reads none."""
        takes_words = any(not action.option_strings for action in self._actions)
        if not takes_words and "-m" in self._option_string_actions:
            return f"name a model by -m {word}"
        reads_text = any(action.dest in ("prompt", "message") for action in self._actions)
        return "put quotes around a text of several words" if reads_text else f"{self.prog} --help shows what fits"

    def _given(self, words: Sequence[str]) -> set[str]:
        """The names of the options that the words give, rather than the environment or a default."""
        given = {word.partition("=")[0] if word.startswith("--") else word[:2] for word in words}
        return {action.dest for action in self._actions if given.intersection(action.option_strings)}

    def _look_for_habits(self, words: Sequence[str]) -> None:
        """Raise UsageError for an option of other programs: argparse would read some, such as -ngl, as our own."""
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if name.startswith("-") and name not in self.options and (advice := habits.option(name, self.options)):
                raise UsageError(f"there is no option {name}: {advice}")

    def _unknown(self, name: str) -> UsageError:
        """The error for an option that the verb does not have: another verb's, or no verb's."""
        if name in self.options:  # after --
            return UsageError(f"{name} stands after --, where every word is a text: write options before it")
        ours, is_near = habits.renamed(name), {f"{name}s", name.removesuffix("s")}.intersection(self.options)
        users = [] if is_near else [verb for verb, theirs in _options_of_all().items() if ours in theirs]
        if users:
            return UsageError(f"llamita {self.verb} does nothing with {name}: leave it out, it is for {_listed(users)}")
        return unknown("option", name, self.options, f"{self.prog} --help lists them")

    def error(self, message: str) -> NoReturn:
        """Raise a wrong command line as an error of one sentence."""
        message = re.sub(NO_NUMBER, lambda found: f" is{found[2]}, which is no {NUMBERS[found[1]]}", message)
        raise UsageError(f"{message.removeprefix('argument ')}: {self.prog} --help shows what fits")

    def _take(self, environment: Mapping[str, str]) -> None:
        """Take the options' defaults from the environment."""
        for action in self._actions:
            names = [
                f"LLAMITA_{name[2:].upper().replace('-', '_')}" for name in action.option_strings if name[1] == "-"
            ]
            for name in names:
                is_its_own = name == f"LLAMITA_{action.dest.upper()}"  # not another argument's, by a second name
                if name in environment and is_its_own and action.dest != "help":
                    action.default = _value(name, environment[name], action)


def _value(name: str, text: str, action: argparse.Action) -> Any:
    """The value of an option from the environment's text."""
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
    """The error for a name that is not there, with the nearest one; dashes do not make names alike."""
    plain = {one.lstrip("-/"): one for one in known}
    nearest = difflib.get_close_matches(name.lstrip("-/"), plain, n=1, cutoff=NEAR)
    guess = f"did you mean {plain[nearest[0]]}? " if nearest else ""
    return UsageError(f"there is no {kind} {cut(name)}: {guess}{remedy}")


def _options_of_all() -> dict[str, list[str]]:
    """The options of every verb."""
    options = {}
    for verb in TAKES:
        parser = Parser(verb, verb)
        import_module(f"llamita.cli.{verb}").add_arguments(parser)
        options[verb] = parser.options
    return options


def _listed(verbs: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(verbs[:-1]), verbs[-1]] if len(verbs) > 1 else verbs)


def add_model(parser: argparse.ArgumentParser, *, is_positional: bool = False) -> None:
    """Which model: by -m, and where it is what the verb is about, also by its bare name."""
    what = "cria (the default), a folder, a .gguf file, or org/name on the hub"
    if is_positional:
        parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help=what)
    parser.add_argument("-m", "--model", metavar="MODEL", help="the same, as an option" if is_positional else what)


def add_writing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How to write; what is not given comes from the checkpoint. Returns the group, for what one verb alone has."""
    group = parser.add_argument_group("writing (what is not given is as the checkpoint says, or else the default)")
    group.add_argument("-s", "--system", metavar="TEXT", help="instructions for the answer (default: none)")
    group.add_argument(
        "-n", "--max-tokens", type=int, metavar="N", help="the most new tokens (default: to the end of the context)"
    )
    group.add_argument(
        "-t", "--temperature", type=float, metavar="T", help="0 is greedy (the default), higher is more varied"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw among the K most probable tokens (default: 0, all)")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the most probable that reach P together (default: 1, all)"
    )
    group.add_argument(
        "--min-p", type=float, metavar="P", help="tokens at least P times as probable as the best (default: 0, all)"
    )
    group.add_argument(
        "--repeat-penalty", type=float, metavar="F", help="above 1 has the model repeat less (default: 1, off)"
    )
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="taken off every token already written (default: 0)"
    )
    group.add_argument(
        "--frequency-penalty", type=float, metavar="X", help="taken off for every time it was written (default: 0)"
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="the same seed writes the same text (default: a random one)"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text, may be repeated (default: none)"
    )
    return group


def writing(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `LLM.generate` that were given."""
    return {option: value for name, option in WRITING.items() if (value := getattr(arguments, name)) is not None}
