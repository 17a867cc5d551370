"""The settings of structured output, and the grammar that each makes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamita.errors import UsageError
from llamita.structured.grammar import Grammar, choice, json_schema, lark, regex

FORMS: Mapping[str, Callable[[Any], Grammar]] = {
    "json_schema": json_schema,
    "regex": regex,
    "grammar": lambda given: given if isinstance(given, Grammar) else lark(given),
    "choice": choice,
}


def check_forms(names: Sequence[str], *, heals: bool) -> None:
    """Raise UsageError for two constraints on one answer, or for one together with healing."""
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} are two forms for one answer: give one of them")
    if names and heals:
        raise UsageError(f"{names[0]} is of the answer alone, and healing begins inside the prompt: give one of them")


def grammar_of(forms: Mapping[str, Any]) -> Grammar | None:
    """The grammar of the one setting that is given, or None."""
    name = next((name for name in FORMS if forms.get(name) is not None), None)
    return None if name is None else FORMS[name](forms.get(name))
