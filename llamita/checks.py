"""Checks of single values: each passes in silence or raises a UsageError that says the name, the value and the rule."""

import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from llamita.errors import UsageError

MAX_QUOTED = 60  # characters of a value that a message repeats, whatever a file says
MAX_FLOAT = sys.float_info.max  # whole numbers may be larger
MAX_DIGITS = 308
MOST_THREADS = 4096
_MANY_DIGITS = re.compile(rf"\d{{{MAX_DIGITS}}}")
MAX_REASON = 120  # characters of what a library says is wrong


def quoted(value: Any) -> str:
    """A value as a message repeats it, cut where it is long."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4,300 digits
        return "too long to be written"


def shortened(text: object, most: int = MAX_QUOTED) -> str:
    """A text in one line of at most `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ ": did you mean ...?" for a name that is misspelled, nothing for one like none of the known."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f": did you mean {found[0]!r}?" if found else ""


def remedy(name: str, table: Mapping[str, Collection[str]], known: Collection[str]) -> str:
    """The end of a sentence that refuses a name: the advice of a table, the nearest of the known names, or all."""
    if said := advice(name, table):
        return f": {said}"
    return nearest(name, known) or f": leave it out, or take one of {', '.join(known)}"


def advice(name: str, table: Mapping[str, Collection[str]]) -> str | None:
    """What a table of advice and the names that it is for says to a name; None where that is nothing."""
    return next((said for said, names in table.items() if name in names), None)


def parsed_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError with the reason in a few words, for any text there can be.

    pairs: makes each object, of its names and values.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=_integer if _MANY_DIGITS.search(text) else None)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a surrogate pair, unless both halves are there
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        what = "a number has too many digits" if "digits" in str(error) else shortened(error)
        raise ValueError(what) from None
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names all differ, for `parsed_json`. Raises ValueError: of two values readers take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    """A whole number that a float can hold: all that is computed with becomes one."""
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def count(name: str, value: Any) -> None:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {quoted(value)}: it must be a whole number of at least 1")


def whole(name: str, value: Any, *, least: int | None = None) -> None:
    """A whole number, one of numpy too."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise UsageError(f"{name} is {quoted(value)}: it must be a whole number{bound}")


def at_most(name: str, value: Any, most: int) -> None:
    """A whole number that is no larger than makes sense."""
    if value > most:
        raise UsageError(f"{name} is {quoted(value)}: it must be at most {most}")


def threads(name: str, value: Any) -> None:
    """A number of threads; far beyond it OpenMP ends the process."""
    count(name, value)
    at_most(name, value, MOST_THREADS)


def flag(name: str, value: Any) -> None:
    """True or False, not a word for it."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {quoted(value)}: it must be true or false")


def share(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise UsageError(f"{name} is {quoted(value)}: it must be a number from 0 to 1")


def positive(name: str, value: Any) -> None:
    """A finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf or value > MAX_FLOAT:
        raise UsageError(f"{name} is {quoted(value)}: it must be above 0 and finite")


def not_negative(name: str, value: Any) -> None:
    """A finite number, 0 or above."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise UsageError(f"{name} is {value!r}: it must be 0 or above, and finite")


def positives(name: str, value: Any) -> None:
    """A list of finite numbers above 0."""
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} is {quoted(value)}: it must be a list of numbers")
    for one in value:
        positive(name, one)


def token(name: str, value: Any, vocab_size: int) -> None:
    """A token's number, or None, or Meta's -1 for none (transformers' own files carry it as pad_token_id)."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {quoted(value)}: it must be the number of a token")
    if not -1 <= value < vocab_size:
        raise UsageError(f"{name} is {quoted(value)}, outside the vocabulary of {vocab_size} tokens")


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A JSON object as a new dict; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"{name} is {quoted(value)}: it must be an object of keys and values")
    return dict(value or {})


def labels(value: Any) -> dict[int, str]:
    """A JSON object from class numbers, as text, to names."""
    try:
        return {int(index): str(label) for index, label in value.items()}
    except (AttributeError, ValueError):
        raise UsageError(f"id2label is {quoted(value)}: it must name each class by its number") from None
