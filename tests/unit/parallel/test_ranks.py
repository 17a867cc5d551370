"""Sharing a global batch: every row is one rank's, whatever their number."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from llamita.errors import UsageError
from llamita.parallel.ranks import DataRanks


@dataclass
class Numbers:
    """A batch of numbered rows."""

    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, rows: int) -> "list[Numbers]":
        """Parts of some rows."""
        return [Numbers(self.rows[first : first + rows]) for first in range(0, len(self.rows), rows)]


def rank(number: int, size: int) -> DataRanks:
    """One of several ranks, without their processes."""
    ranks = DataRanks()
    ranks.rank, ranks.size = number, size
    return ranks


def shares(size: int, *, rows: int, micro_rows: int) -> list[list[list[int]]]:
    batch = Numbers(range(rows))
    return [[list(part.rows) for part in rank(number, size).share(batch, micro_rows)] for number in range(size)]


def test_ranks_take_micro_batches_in_turns() -> None:
    assert shares(2, rows=8, micro_rows=2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [rank(1, 2).number(turn) for turn in (0, 1)] == [1, 3]


@pytest.mark.parametrize(("size", "rows", "micro_rows"), [(1, 7, 3), (2, 10, 3), (3, 12, 8), (4, 8, 1)])
def test_each_row_is_taken_once_and_ranks_take_as_many_turns(size: int, rows: int, micro_rows: int) -> None:
    found = shares(size, rows=rows, micro_rows=micro_rows)
    assert sorted(row for turns in found for part in turns for row in part) == list(range(rows))
    assert len({tuple(len(part) for part in turns) for turns in found}) == 1
    assert max(len(part) for turns in found for part in turns) <= micro_rows


def test_rows_that_cannot_be_shared_evenly_are_refused() -> None:
    rank(0, 4).check_rows(8)
    with pytest.raises(UsageError, match=r"a step has 10 rows, which 4 processes cannot share evenly: .* has 8 rows"):
        rank(0, 4).check_rows(10)


def test_a_single_process_has_all_values() -> None:
    assert DataRanks().in_order([3.0, 1.0]) == [3.0, 1.0]
    assert (DataRanks().rank, DataRanks().size, DataRanks().mesh) == (0, 1, None)
