"""Texts are what they were when somebody last looked at them."""

import pytest

from tests.golden.records import FOLDER, RECEIPT, RECORDS, receipt


@pytest.mark.parametrize("name", RECORDS)
def test_text_is_as_recorded(name: str) -> None:
    assert RECORDS[name]() == (FOLDER / name).read_text(encoding="utf-8"), "if this is meant: make golden"


def test_nothing_is_recorded_in_vain() -> None:
    assert {path.name for path in FOLDER.glob("*.txt")} == RECORDS.keys()


def test_the_published_receipt_is_that_of_this_machine_too() -> None:
    assert receipt() == RECEIPT.read_text(encoding="utf-8"), "if this is meant: make golden"
