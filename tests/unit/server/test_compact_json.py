"""JSON that comes in pieces is written as `sse.dumped` writes the whole."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamita.server.compact_json import CompactJson
from llamita.server.sse import dumped

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (" ,", " : ")}]


def pushed(text: str, size: int) -> tuple[str, str, bool]:
    compact, out, rest = CompactJson(), "", ""
    for at in range(0, len(text), size):
        more, rest = compact.push(text[at : at + size])
        out += more
        if compact.is_over:
            return out, rest + text[at + size :], True
    return out, rest, False


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.integers(1, 9), st.sampled_from(LAYOUTS))
def test_any_object_in_any_pieces(value: dict[str, Any], size: int, layout: dict[str, Any]) -> None:
    text = json.dumps(value, **layout)
    assert pushed(f"{text}; more }}", size) == (dumped(value), "; more }", True)


@pytest.mark.parametrize("size", [1, 3, 99])
@pytest.mark.parametrize(
    ("text", "out"),
    [
        ('{"a": 1', '{"a":'),
        ('{"a": "b\\', '{"a":"b'),
        ('{"a": "\\u00', '{"a":"'),
        ('{"a": "\\x"}', '{"a":"\\x"}'),
        ('{"a": oops, }', '{"a":oops,}'),
        ('{"a": 1e2, "b": "\\/\\u00E9é😀"}', '{"a":100.0,"b":"/\\u00e9\\u00e9\\ud83d\\ude00"}'),
    ],
)
def test_what_is_cut_or_damaged_stays_so(text: str, out: str, size: int) -> None:
    assert pushed(text, size)[0] == out
