"""The form that an answer is to have, as the command line says it."""

import argparse
from typing import Any

from llamita.errors import UsageError
from llamita.files.disk import named_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One of four ways to say what an answer must look like."""
    group = parser.add_argument_group("form of the answer, at most one (default: none)")
    group.add_argument("--json-schema", metavar="SCHEMA", help="JSON that this schema allows: a file, or {...} itself")
    group.add_argument("--regex", metavar="PATTERN", help="text that this pattern matches whole")
    group.add_argument("--grammar", metavar="FILE", help="text of this grammar, written in Lark or GBNF")
    group.add_argument("--choice", metavar="A,B,...", help="one of these texts")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `LLM.generate` that say the form; files are read here."""
    given: dict[str, Any] = {}
    if (schema := arguments.json_schema) is not None:
        given["json_schema"] = schema if schema.lstrip().startswith("{") else _content(schema)
    if arguments.regex is not None:
        given["regex"] = arguments.regex
    if arguments.grammar is not None:
        given["grammar"] = _content(arguments.grammar)
    if arguments.choice is not None:
        given["choice"] = arguments.choice.split(",")
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names} are two forms for one answer: give one of them")
    return given


def _content(name: str) -> str:
    """A file's text; raises UsageError where it is no text."""
    if not name.strip():
        raise UsageError("the name of a schema's or a grammar's file is empty: name a file")
    try:
        return named_path(name).read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise UsageError(f"{name} is a folder: name a file") from None
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}): name a file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text: convert it, for example with iconv -t utf-8") from None
