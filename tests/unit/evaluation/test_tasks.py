"""Tasks: the built-in suite is what the recipe of cria writes, and a wrong case is one sentence."""

import json
from pathlib import Path

import pytest

from llamita.errors import BrokenFileError, UsageError
from llamita.evaluation.tasks import TaskScore, read_task, suite
from recipes.cria.suite import FOLDER, SUITE, text


def test_the_suite_is_what_the_recipe_writes() -> None:
    assert suite() == sorted(SUITE)
    for name, rows in SUITE.items():
        assert text(rows()) == (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8"), "run recipes.cria.suite again"


def test_every_built_in_case_can_be_read() -> None:
    tasks = [read_task(name) for name in suite()]
    assert {task.rule for task in tasks} == {"exact", "choice"}
    assert sum(len(task.cases) for task in tasks) > 1000
    assert len(read_task("add", limit=7).cases) == 7


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "has no case"),
        ("{", ":1 is not valid JSON"),
        ("[1]", "a case has prompt or messages, answer, and maybe choices"),
        ('{"prompt": "a", "answer": "b", "score": 1}', "a case has prompt or messages"),
        ('{"answer": "b"}', "needs either prompt, a string, or messages, a list"),
        ('{"prompt": "a", "messages": [], "answer": "b"}', "needs either prompt"),
        ('{"prompt": "a"}', "needs answer, the string that is right, or choices"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "choices must be a list of at least two strings"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "the number of the right choice, from 0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "the number of the right choice"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "choices": ["b", "c"], "answer": 1}', "put them into two"),
    ],
)
def test_a_wrong_case_is_one_sentence(tmp_path: Path, line: str, error: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises((UsageError, BrokenFileError), match=error) as raised:
        read_task(str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there is no task 'sums': use add, compare, "):
        read_task("sums")


def test_a_file_of_cases_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{n}", "answer": "a"}) for n in range(3)), encoding="utf-8")
    task = read_task(str(path))
    assert (task.name, task.rule, [case.prompt for case in task.cases]) == ("mine", "exact", ["0", "1", "2"])


def test_the_standard_error_is_that_of_a_share() -> None:
    score = TaskScore("a", "exact", 75, 101)
    assert score.accuracy == 75 / 101
    assert score.standard_error == pytest.approx((75 / 101 * 26 / 101 / 100) ** 0.5)
    assert TaskScore("a", "exact", 1, 1).standard_error == 0
