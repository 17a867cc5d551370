"""Rewards that a program checks."""

import json
from pathlib import Path

import pytest

from llamita.errors import NotFoundError, UsageError
from llamita.train.tasks.rewards import check_fields, exact, find_reward, json_object, regex


def test_the_built_in_rewards() -> None:
    assert [exact(text, {"answer": 42}) for text in (" 42\n", "42.", "")] == [1, 0, 0]
    assert [regex(text, {"pattern": r"\d+$"}) for text in ("is 12", "12 is")] == [1, 0]
    texts = ('{"name": "Mia", "age": 3}', '{"name": "Mia"}', "[1]", "{")
    assert [json_object(text, {"keys": ["name", "age"]}) for text in texts] == [1, 0, 0, 0]
    assert json_object('{"name": "Mia"}', {}) == 1
    assert json_object("[" * 5000, {}) == 0  # deeper than Python reads


def test_json_fits_a_schema() -> None:
    properties = {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 1}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    texts = (
        '{"name": "Mïa", "age": 3}', '{"name":"Mia",\n\n\n"age":   12}', '{"name": "Mia", "age": "3"}',
        '{"name": "Mia", "age": 0}', '{"name": "Mia"}', '{"name": "Mia", "age": 3, "x": 1}', '{"name": "Mia", "age": 3',
    )  # fmt: skip
    for given in (schema, json.dumps(schema)):
        assert [json_object(text, {"schema": given}) for text in texts] == [1, 1, 0, 0, 0, 0, 0]
    check_fields("json", {"schema": schema}, "a.jsonl:1")
    check_fields("scores:short", {"schema": "?"}, "a.jsonl:1")  # whose fields nobody here knows


@pytest.mark.parametrize(("name", "fields"), [("json", {"schema": "?"}), ("regex", {"pattern": "("})])
def test_a_field_that_is_no_schema_or_pattern_is_refused_at_the_start(name: str, fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=rf"^a.jsonl:1 has a field that the reward {name} cannot read: "):
        check_fields(name, fields, "a.jsonl:1")


@pytest.mark.parametrize("name", ["os:system", "json:dumps", "os:name"])
def test_a_function_that_is_no_reward_is_named(name: str) -> None:
    reward, _ = find_reward(name)
    with pytest.raises(
        UsageError, match=rf"^reward {name} failed \(.*\): make it take the text and the record's fields"
    ):
        reward("a", {"b": 1})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308"])
def test_a_reward_of_which_nothing_is_learned_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.py").write_text(f"def bad(text, fields):\n    return float('{value}')\n")
    reward, _ = find_reward("scores:bad")
    with pytest.raises(UsageError, match=r"^reward scores:bad gave \S+ for 'an answer': make it a number of at most"):
        reward("an answer", {})


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
