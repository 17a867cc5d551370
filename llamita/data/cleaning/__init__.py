"""Cleaning of records before training, as a table of steps: what is left out, and what is changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamita.data.cleaning.duplicates import different, without_repeated_lines
from llamita.data.cleaning.language import LANGUAGES, language
from llamita.data.cleaning.personal import mask_personal
from llamita.data.cleaning.quality import is_prose
from llamita.data.records import TEXTS, Record
from llamita.errors import UsageError

Step = Callable[[Sequence[Record]], list[Record]]


def keeping(is_wanted: Callable[[str], bool]) -> Step:
    """A step that keeps the records of whose texts, joined by lines, a function says yes: any filter of yours."""
    return lambda records: [record for record in records if is_wanted("\n".join(record.texts))]


def changing(change: Callable[[str], str]) -> Step:
    """A step that changes every text of every record."""
    return lambda records: [replace(record, fields=_changed(record.fields, change)) for record in records]


def _distinct(records: Sequence[Record]) -> list[Record]:
    return [records[number] for number in different(["\n".join(record.texts) for record in records])]


STEPS: Mapping[str, Step] = {
    "quality": keeping(is_prose),
    "lines": changing(without_repeated_lines),
    "duplicates": _distinct,
    "personal": changing(mask_personal),
    **{f"language={name}": keeping(lambda text, name=name: language(text) == name) for name in LANGUAGES},
}


def parsed_steps(text: str) -> list[str]:
    """The names of steps in a text with commas. Raises UsageError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STEPS]:
        raise UsageError(f"clean has {unknown[0]!r}, which is no step: use {', '.join(STEPS)}")
    return names


def clean(records: Sequence[Record], names: Sequence[str]) -> tuple[list[Record], dict[str, int]]:
    """The records after some steps, in order, and how many records each step dropped or changed.

    Raises UsageError where none is left.
    """
    counts: dict[str, int] = {}
    found = list(records)
    for name in names:
        after = [record for record in STEPS[name](found) if any(map(str.strip, record.texts))]
        before = {record.where: record for record in found}
        changed = sum(record.fields != before[record.where].fields for record in after)
        counts[name], found = len(found) - len(after) + changed, after
    if not found:
        raise UsageError(f"cleaning by {', '.join(names)} leaves no text to train on: leave a step out, or give more")
    return found, counts


def _changed(fields: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {name: _changed_value(value, change) if name in TEXTS else value for name, value in fields.items()}


def _changed_value(value: Any, change: Callable[[str], str]) -> Any:
    """A text after the change, or messages with their contents changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return {**value, "content": change(value["content"])}
    return [_changed_value(item, change) for item in value] if isinstance(value, list) else value
