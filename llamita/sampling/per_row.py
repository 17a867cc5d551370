"""One value for every row of a batch, or one for each."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.errors import UsageError

PerRow = float | Sequence[float | None] | Tensor | None  # one number for all rows, or one for each; None is "off"


LARGEST = 2**62  # a larger whole number is as good as this one, and would not fit a tensor


class EachRow(tuple):
    """One value for each row, of something that is itself a list or a table: EachRow((None, [[5, 7]]))."""

    def select(self, rows: Sequence[int]) -> "EachRow":
        """The values of these rows."""
        return EachRow(self[row] for row in rows)


def listed(value: PerRow, rows: int, *, off: float = 0.0) -> list[float]:
    """The value of every row as a number that fits a tensor; `off` stands for None."""
    return [off if one is None else _fitting(one) for one in _each(value, rows)]


def _each(value: PerRow, rows: int) -> Sequence[float | None]:
    values: Any = value.tolist() if isinstance(value, Tensor) else value
    return values if isinstance(values, Sequence) and not isinstance(values, str | bytes) else [values] * rows


def _fitting(number: float) -> float:
    return min(max(number, -LARGEST), LARGEST) if isinstance(number, int) else number


def column(value: PerRow, logits: Tensor) -> float | Tensor:
    """A number as it is, numbers as (B, 1): division and comparison then round as transformers' do.

    What is beyond the dtype's largest number becomes that: 0 times infinity would be no number.
    """
    largest = torch.finfo(logits.dtype).max
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, int | float):
        fitting = min(max(value, -largest), largest)
        return float(fitting) if abs(fitting) > LARGEST else fitting  # torch takes no larger whole number
    return (
        torch.tensor(listed(value, 1), dtype=torch.float64, device="cpu").clamp(-largest, largest).to(logits)[:, None]
    )


def mapped(value: PerRow, function: Callable[[float], float]) -> PerRow:
    """A function of every row's number, computed in double precision."""
    if isinstance(value, int | float):
        return function(value)
    return [function(one) for one in listed(value, 1)]


def is_given(value: PerRow, is_on: Callable[[float], bool], *, off: float) -> bool:
    """Whether any row has a value that does something."""
    return any(is_on(one) for one in listed(value, 1, off=off))


def check(name: str, value: PerRow, *, low: float, high: float, remedy: str) -> None:
    """Raise UsageError for what is no finite number from `low` to `high`, on any row; None passes."""
    for one in _each(value, 1):
        is_number = isinstance(one, int | float) and not isinstance(one, bool)
        if one is not None and (not is_number or not low <= one <= high or one in (math.inf, -math.inf)):
            raise UsageError(f"{name} is {quoted(one)}: {remedy}")


def check_whole(name: str, value: PerRow) -> None:
    """Raise UsageError for a number with a fraction, on any row."""
    for one in listed(value, 1):
        if one != int(one):
            raise UsageError(f"{name} is {one!r}: give a whole number")


def check_rows(name: str, value: object, rows: int) -> None:
    """Raise UsageError where a list of values is not one for each row."""
    if isinstance(value, Tensor):
        given = value.numel() if value.ndim else rows
    else:
        given = len(value) if isinstance(value, Sequence) else rows
    if given != rows:
        raise UsageError(f"{name} lists {given} numbers for {rows} rows: give one for each, or one for all")
