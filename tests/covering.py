"""Few cases of a grid that still show every combination of a few of its axes' values."""

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations
from typing import TypeVar

Case = TypeVar("Case", bound=Mapping[str, Hashable])


def covering(grid: Iterable[Case], axes: int) -> list[Case]:
    """Cases of a grid in which each combination of values of so many axes is that is in the grid, by the greedy way."""
    cases, bits = list(grid), dict[Hashable, int]()
    shown = [
        sum(1 << bits.setdefault(values, len(bits)) for values in combinations(case.items(), axes)) for case in cases
    ]
    missing, chosen = (1 << len(bits)) - 1, list[Case]()
    while missing:
        best = max(range(len(cases)), key=lambda number: (shown[number] & missing).bit_count())
        chosen.append(cases[best])
        missing &= ~shown[best]
    return chosen
