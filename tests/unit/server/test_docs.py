"""The page of the API."""

import pytest

from llamita.server.docs import kind, page


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 8}, "integer from 1 to 8"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
         "string or list of integer"),
        ({"$ref": "#/components/schemas/A"}, "A"),
        ({"enum": ["a", "b"]}, "a, b"),
        ({"const": "a"}, "a"),
        ({}, "anything"),
    ],
)  # fmt: skip
def test_kinds_are_said_in_words(field: dict, words: str) -> None:
    assert kind(field) == words


def test_a_page_loads_nothing_and_escapes_all() -> None:
    methods = {"get": {"description": "<script>alert(1)</script>"}}
    text = page({"paths": {"/<a>": methods}, "components": {"schemas": {}}})
    assert "<script" not in text
    assert "<a>" not in text
    assert "http" not in text
