"""Checks of single values: each passes in silence or raises a UsageError that says the name, the value and the rule."""

import math
from collections.abc import Mapping
from typing import Any

from llamita.errors import UsageError


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def count(name: str, value: Any) -> None:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}: it must be a whole number of at least 1")


def flag(name: str, value: Any) -> None:
    """True or False, not a word for it."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}: it must be true or false")


def share(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise UsageError(f"{name} is {value!r}: it must be a number from 0 to 1")


def positive(name: str, value: Any) -> None:
    """A finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise UsageError(f"{name} is {value!r}: it must be above 0")


def not_negative(name: str, value: Any) -> None:
    """A finite number, 0 or above."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise UsageError(f"{name} is {value!r}: it must be 0 or above")


def positives(name: str, value: Any) -> None:
    """A list of finite numbers above 0."""
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} is {value!r}: it must be a list of numbers")
    for one in value:
        positive(name, one)


def token(name: str, value: Any, vocab_size: int) -> None:
    """A token's number, or None, or Meta's -1 for none (transformers' own files carry it as pad_token_id)."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}: it must be the number of a token")
    if not -1 <= value < vocab_size:
        raise UsageError(f"{name} is {value}, outside the vocabulary of {vocab_size} tokens")


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A JSON object as a new dict; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"{name} is {value!r}: it must be an object of keys and values")
    return dict(value or {})


def labels(value: Any) -> dict[int, str]:
    """A JSON object from class numbers, as text, to names."""
    try:
        return {int(index): str(label) for index, label in value.items()}
    except (AttributeError, ValueError):
        raise UsageError(f"id2label is {value!r}: it must name each class by its number") from None
