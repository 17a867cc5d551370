"""Cleaning as a table of steps on records of every form."""

import pytest

from llamita.data.cleaning import STEPS, changing, clean, keeping, parsed_steps
from llamita.data.records import Record
from llamita.errors import UsageError

PROSE = "The llama was in the garden and it had not seen that they were there."


def record(number: int, **fields: object) -> Record:
    return Record(fields, f"x.jsonl:{number}")


RECORDS = [
    record(1, text=PROSE),
    record(2, text="### ### ### ### ###"),
    record(3, prompt="Mail?", completion=f"a@b.org {PROSE}"),
    record(4, messages=[{"role": "user", "content": PROSE + " Call 415-555-0132"}, {"role": "x", "content": None}]),
    record(5, text=PROSE.upper()),
]


def test_steps_run_in_order_and_count_what_they_do() -> None:
    found, counts = clean(RECORDS, ["quality", "duplicates", "personal"])
    assert counts == {"quality": 1, "duplicates": 1, "personal": 2}
    assert [one.where for one in found] == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:4"]
    assert found[0] == RECORDS[0]
    assert found[1].fields == {"prompt": "Mail?", "completion": f"<EMAIL> {PROSE}"}
    assert found[2].fields["messages"][0] == {"role": "user", "content": PROSE + " Call <PHONE>"}
    assert found[2].fields["messages"][1] == {"role": "x", "content": None}


def test_a_language_and_lines() -> None:
    records = [record(1, text=f"{PROSE}\n{PROSE}"), record(2, text="Das ist nicht die Sprache, die es auch ist.")]
    found, counts = clean(records, ["language=en", "lines"])
    assert [one.fields["text"] for one in found] == [PROSE]
    assert counts == {"language=en": 1, "lines": 1}


def test_functions_of_ones_own_are_steps() -> None:
    assert keeping(lambda text: "SEEN" in text)(RECORDS) == [RECORDS[4]]
    assert changing(str.lower)([RECORDS[4]])[0].fields["text"] == PROSE.lower()


def test_wrong_steps_and_nothing_left_are_one_sentence() -> None:
    assert parsed_steps(" quality, personal,") == ["quality", "personal"]
    assert parsed_steps("") == []
    assert {"quality", "lines", "duplicates", "personal", "language=en"} < STEPS.keys()
    with pytest.raises(UsageError, match="clean has 'spelling', which is no step: use quality, lines"):
        parsed_steps("spelling")
    with pytest.raises(UsageError, match="cleaning by language=de leaves no text to train on"):
        clean(RECORDS, ["language=de"])
