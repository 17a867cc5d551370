"""R11: answers keep to their schemas whatever a model would rather write, and a hostile one fails alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.server.bad_input import nested
from tests.server.serving import Running, chat

WORD = {"type": "string", "maxLength": 6}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"enum": [1, "two", None, {"three": 3}]},
    {"const": {"a": [1, 2]}},
    WORD,
    {"type": "string", "pattern": "^[a-c]{2}[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [WORD, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "object", "properties": {"a": WORD}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": {"type": "null"}},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"const": "none"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
    {"type": ["boolean", "null"]},
    {"$defs": {"w": WORD}, "type": "array", "items": {"$ref": "#/$defs/w"}, "maxItems": 3},
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"name": WORD, "tags": {"type": "array", "items": WORD, "maxItems": 2}},
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
]


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def test_r11_what_is_not_cut_is_valid(server: Running) -> None:
    """All at once, so that rows of different grammars share steps."""

    def ask(number: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        schema = SCHEMAS[number]
        fields = {"temperature": 1.5, "seed": number, "max_tokens": 60, "response_format": format_of(schema), "n": 3}
        answer = server.post("/v1/chat/completions", chat("Say something.", **fields))
        assert answer.status_code == 200, (schema, answer.text)
        return [(schema, choice) for choice in answer.json()["choices"]]

    with ThreadPoolExecutor(len(SCHEMAS)) as pool:
        found = [one for some in pool.map(ask, range(len(SCHEMAS))) for one in some]
    ended = [(schema, choice["message"]["content"]) for schema, choice in found if choice["finish_reason"] == "stop"]
    assert len(ended) > len(found) / 2
    for schema, text in ended:
        jsonschema.validate(json.loads(text), schema)
    assert {choice["finish_reason"] for _, choice in found} <= {"stop", "length"}


HOSTILE: dict[str, Any] = {
    "nested": nested(400),
    "enum": {"enum": ["x" * 80 + str(number) for number in range(20_000)]},
    "itself": {"$ref": "#"},
    "circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "elsewhere": {"$ref": "http://169.254.169.254/"},
    "file": {"$ref": "file:///etc/passwd"},
    "long": {"type": "array", "minItems": 10**9},
    "string": {"type": "string", "minLength": 10**30},
    "pattern": {"type": "string", "pattern": "("},
    "backtracking": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "kind": {"type": "hiccup"},
    "nothing": {"type": "integer", "minimum": 5, "maximum": 3},
    "zero": {"type": "number", "multipleOf": 0},
    "missing": {"$ref": "#/$defs/none"},
    "properties": {"type": "object", "properties": []},
    "required": {"type": "object", "required": "a"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_r11_a_hostile_schema_fails_alone(server: Running, name: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(server.post, "/v1/chat/completions", chat(max_tokens=30))
        answer = server.post("/v1/chat/completions", chat(max_tokens=5, response_format=format_of(HOSTILE[name])))
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert beside.result().status_code == 200
