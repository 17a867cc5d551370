"""Rewards that a program checks."""

from pathlib import Path

import pytest

from llamita.errors import NotFoundError
from llamita.train.tasks.rewards import exact, find_reward, json_object, regex


def test_the_built_in_rewards() -> None:
    assert [exact(text, {"answer": 42}) for text in (" 42\n", "42.", "")] == [1, 0, 0]
    assert [regex(text, {"pattern": r"\d+$"}) for text in ("is 12", "12 is")] == [1, 0]
    texts = ('{"name": "Mia", "age": 3}', '{"name": "Mia"}', "[1]", "{")
    assert [json_object(text, {"keys": ["name", "age"]}) for text in texts] == [1, 0, 0, 0]
    assert json_object('{"name": "Mia"}', {}) == 1


def test_a_function_of_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.py").write_text("def short(text, fields):\n    return -len(text) * fields['weight']\n")
    reward, needs = find_reward("scores:short")
    assert needs is None
    assert reward("abc", {"weight": 2}) == -6
    assert find_reward("math:sqrt")[0] is not None
    for name in ("scores:long", "nothing_here:f"):
        with pytest.raises(NotFoundError, match=r"reward \S+ is not there"):
            find_reward(name)
