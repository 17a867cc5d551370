"""Datasets without an end: their rows are the same from whatever position they are read."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamita.data import endless
from llamita.data.documents import Document
from llamita.data.endless import Windows, is_endless, windows
from llamita.data.packing import Rows, pack
from llamita.errors import UsageError

NAME = "hf:org/name:train:*"


def stand_in(count: int) -> Any:
    """The library, whose only dataset has some rows."""
    rows = [{"text": f"text {number}"} for number in range(count)]
    return SimpleNamespace(load_dataset=lambda *_, **__: rows, DownloadConfig=lambda **_: None)


def read() -> Iterator[Rows]:
    """Windows of 3, 4, 5, ... rows, each row of a number of its own."""
    number, size = 0, 3
    while True:
        tokens = [torch.full((4,), number + n, dtype=torch.int32) for n in range(size)]
        yield pack([Document(one, one, is_splittable=False) for one in tokens], 4)
        number, size = number + size, size + 1


def test_a_dataset_begins_again_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", stand_in(3))
    monkeypatch.setattr(endless, "WINDOW", 4)
    found = windows([NAME])
    texts = [[record.fields["text"] for record in next(found)] for _ in range(2)]
    assert texts == [["text 0", "text 1", "text 2", "text 0"], ["text 1", "text 2", "text 0", "text 1"]]
    monkeypatch.setitem(sys.modules, "datasets", stand_in(0))
    assert list(windows([NAME])) == []


def test_only_a_star_has_no_end_and_it_is_alone() -> None:
    assert [is_endless(names) for names in ([NAME], ["hf:org/name:train:3"], ["a*.txt"], [])] == [True] + 3 * [False]
    with pytest.raises(UsageError, match="has no end, so nothing comes after it: leave the other data out"):
        is_endless([NAME, "book.txt"])


def test_rows_depend_on_the_position_alone() -> None:
    whole = Windows(read, seed=3).next(20).inputs[:, 0].tolist()
    assert sorted(whole[:3]) == [0, 1, 2] and sorted(whole[3:7]) == [3, 4, 5, 6]
    assert whole != sorted(whole)
    for position in (0, 2, 3, 9, 17):
        one = Windows(read, seed=3)
        one.next(5)
        one.position = position  # forward, and back to windows that are gone
        assert [int(one.next(1).inputs[0, 0]) for _ in whole[position:]] == whole[position:]
    assert Windows(read, seed=4).next(20).inputs[:, 0].tolist() != whole
    assert Windows(read, seed=4).fingerprint == Windows(read, seed=3).fingerprint
