"""A dataset of Hugging Face without an end, read in windows of records; its position is one integer too."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from llamita.data.loader import Batch, joined, order, take
from llamita.data.packing import Rows
from llamita.data.records import DATASET, Record, each_record
from llamita.data.tables import ENDLESS
from llamita.errors import UsageError

WINDOW = 1000  # records that are cleaned, packed and put in order together


def is_endless(names: Sequence[str]) -> bool:
    """Whether the data is a dataset that is read without end. Raises UsageError where it is not alone."""
    found = [name for name in names if name.startswith(DATASET) and name.endswith(ENDLESS)]
    if found and len(names) > 1:
        raise UsageError(f"{found[0]} has no end, so nothing comes after it: leave the other data out")
    return bool(found)


def windows(names: Sequence[str], *, offline: bool = False) -> Iterator[list[Record]]:
    """The records of an endless dataset, WINDOW at a time."""
    records = each_record(names[0], offline=offline)
    while window := list(islice(records, WINDOW)):
        yield window


class Windows:
    """Reads windows of packed rows one after another, each in an order of its own.

    position: how many rows were read since the first. It is the whole state, as a `Loader`'s: the rows depend on it,
    the seed and the data alone. A resumed run reads the windows before it again.
    """

    def __init__(self, read: Callable[[], Iterator[Rows]], *, seed: int) -> None:
        """`read`: begins with the first window again."""
        self.position, self.seed, self._read = 0, seed, read
        self._begin()
        self._fingerprint = self._rows.fingerprint()

    def __len__(self) -> int:
        """The rows of the window at hand."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the first window."""
        return self._fingerprint

    def next(self, count: int) -> Batch:
        """The next `count` rows; the position moves on."""
        parts, stop = list[Batch](), self.position + count
        while self.position < stop:
            self._reach(self.position)
            index = self._order[self.position - self._first : stop - self._first]
            parts.append(take(self._rows, torch.tensor(index, device="cpu")))
            self.position += len(index)
        return joined(parts)

    def _begin(self) -> None:
        self._source, self._number, self._first = self._read(), 0, 0
        self._take_window()

    def _reach(self, position: int) -> None:
        if position < self._first:
            self._begin()
        while position >= self._first + len(self._rows):
            self._turn()

    def _turn(self) -> None:
        """Go on to the next window."""
        self._first, self._number = self._first + len(self._rows), self._number + 1
        self._take_window()

    def _take_window(self) -> None:
        self._rows = next(self._source)
        self._order = order(len(self._rows), seed=self.seed, epoch=self._number)
