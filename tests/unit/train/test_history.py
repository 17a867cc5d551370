"""The history of a run's recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from llamita.errors import BrokenFileError, UsageError
from llamita.train.history import FILE, Entry, changes_between, note, read_history, recipe_at
from llamita.train.recipe import Recipe

FIRST = Recipe(data=("a.txt", "b.txt"), steps=9, lr=0.1)
SECOND = replace(FIRST, steps=7)
THIRD = replace(SECOND, lr=None, batch_tokens=2048)


def test_entries_are_read_as_they_were_noted(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    for step, recipe in ((0, FIRST), (2, FIRST), (3, SECOND), (5, THIRD)):
        note(tmp_path, step, recipe)
    entries = [Entry(0, FIRST), Entry(3, SECOND), Entry(5, THIRD)]
    assert read_history(tmp_path) == entries
    lines = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ['{"step": 3, "steps": 7}', '{"step": 5, "batch_tokens": 2048, "lr": null}']
    assert [recipe_at(entries, step) for step in (0, 2, 3, 4, 5, 99)] == [FIRST, FIRST, SECOND, SECOND, THIRD, THIRD]
    assert changes_between(entries, 0, 5) == [3]
    assert changes_between(entries, 0, 6) == [3, 5]
    assert changes_between(entries, 3, 5) == []


def test_a_run_that_goes_back_forgets_what_came_after(tmp_path: Path) -> None:
    for step, recipe in ((0, FIRST), (3, SECOND), (5, THIRD)):
        note(tmp_path, step, recipe)
    note(tmp_path, 4, FIRST)
    assert read_history(tmp_path) == [Entry(0, FIRST), Entry(3, SECOND), Entry(4, FIRST)]
    note(tmp_path, 3, THIRD)
    assert read_history(tmp_path) == [Entry(0, FIRST), Entry(3, THIRD)]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"step": "x"}'])
def test_a_damaged_history_is_one_sentence(tmp_path: Path, line: str) -> None:
    note(tmp_path, 0, FIRST)
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(BrokenFileError, match=r"history.jsonl is damaged: remove it to go on with the run"):
        note(tmp_path, 3, SECOND)


def test_steps_before_the_history_are_not_known() -> None:
    with pytest.raises(UsageError, match="history begins after step 3"):
        recipe_at([Entry(3, FIRST), Entry(5, SECOND)], 2)
