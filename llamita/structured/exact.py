"""Which numbers of a JSON schema llguidance holds exactly: it reads values as float64, and bounds as int64."""

from collections.abc import Iterator, Mapping
from typing import Any

LARGEST = 2**53  # up to here every whole number is a float64
BEYOND = 2**63  # an int64 ends before
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
VALUES = ("const", "enum")


def inexact(schema: Any) -> tuple[str, int | float] | None:
    """The first keyword whose number llguidance would change, and the number; None if there is none."""
    for keyword, value in _numbers(schema):
        is_next = keyword.startswith("exclusive") and abs(value) >= LARGEST  # of which the bound is the next one
        is_lost = (
            isinstance(value, int) and abs(value) > LARGEST and (abs(value) >= BEYOND or int(float(value)) != value)
        )
        if is_next or is_lost or (keyword in BOUNDS and abs(value) >= BEYOND):
            return keyword, value
    return None


def _numbers(schema: Any, keyword: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number that an answer is compared with, below its keyword."""
    if isinstance(schema, Mapping):
        for name, inner in schema.items():
            yield from _numbers(inner, keyword if keyword in VALUES else str(name))
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from _numbers(inner, keyword)
    elif isinstance(schema, int | float) and not isinstance(schema, bool) and keyword in (*BOUNDS, *VALUES):
        yield keyword, schema
