"""Rewards that a program can check: a number for an answer, from its text and the fields of its record."""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from llamita.checks import parsed_json, quoted
from llamita.errors import NotFoundError, UsageError
from llamita.structured.grammar import Grammar, json_schema, matches

Reward = Callable[[str, Mapping[str, Any]], float]
LARGEST = 1e15  # of a reward: its square in fp32 can still be added over a group


def exact(text: str, fields: Mapping[str, Any]) -> float:
    """1 where the text is the field `answer`, blanks at the ends aside."""
    return float(text.strip() == str(fields["answer"]).strip())


def regex(text: str, fields: Mapping[str, Any]) -> float:
    """1 where the regular expression in the field `pattern` is found in the text."""
    return float(re.search(str(fields["pattern"]), text) is not None)


def json_object(text: str, fields: Mapping[str, Any]) -> float:
    """1 where the text is JSON that fits the field `schema`; without one, an object with every key of the field `keys`.

    Properties must come in the order of the schema, in which structured output writes them.
    """
    try:
        value = parsed_json(text)
    except ValueError:
        return 0.0
    if "schema" in fields:
        schema = fields["schema"]
        grammar = _compiled(schema if isinstance(schema, str) else json.dumps(schema))
        return float(matches(grammar, json.dumps(value, ensure_ascii=False)))
    return float(isinstance(value, dict) and all(key in value for key in fields.get("keys", ())))


@lru_cache(maxsize=256)
def _compiled(schema: str) -> Grammar:
    return json_schema(schema)


# name -> the reward, and the field that it needs of a record
REWARDS: Mapping[str, tuple[Reward, str | None]] = {
    "exact": (exact, "answer"),
    "regex": (regex, "pattern"),
    "json": (json_object, None),
}


def check_fields(name: str, fields: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for fields that a reward of REWARDS cannot work with: a pattern or a schema that is none."""
    if name in REWARDS:
        try:
            REWARDS[name][0]("{}", fields)
        except (UsageError, re.error) as error:
            raise UsageError(f"{where} has a field that the reward {name} cannot read: {error}") from error


def find_reward(name: str) -> tuple[Reward, str | None]:
    """The reward of a name in REWARDS, or of "module:function", where a module may be a file in this folder.

    The function gets the text and the record's fields, and returns a number.
    Raises UsageError for another name, and NotFoundError for a module or function that is not there.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise UsageError(f"reward is {name!r}: use one of {', '.join(REWARDS)}, or module:function")
    try:
        found = getattr(_module(module), function)
    except (ImportError, AttributeError) as error:
        raise NotFoundError(f"reward {name} is not there ({error}): give module:function of a file here") from error
    return _named(name, found), None


def _named(name: str, function: Any) -> Reward:
    """A function of the user's as a reward, which raises UsageError where it fails."""

    def reward(text: str, fields: Mapping[str, Any]) -> float:
        try:
            found = float(function(text, fields))
        except Exception as error:
            raise UsageError(
                f"reward {name} failed ({type(error).__name__}: {error}): make it take the text and the record's "
                "fields, and return a number"
            ) from error
        if not abs(found) <= LARGEST:  # NaN too, of which nothing would be learned, in silence
            raise UsageError(f"reward {name} gave {found} for {quoted(text)}: make it a number of at most {LARGEST:g}")
        return found

    return reward


def _module(name: str) -> Any:
    path = Path(f"{name.replace('.', '/')}.py")
    if not path.is_file():
        return import_module(name)
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
