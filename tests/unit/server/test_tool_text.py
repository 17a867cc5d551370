"""Streams of answers that may be calls: plain text at once, arguments of calls as they come, the rest at the end."""

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamita.server.sse import dumped
from llamita.server.tool_text import Piece, ToolText, text_before_calls
from llamita.structured.tool_calls import ToolCall, parse

NAMES = ("f", "g.h")
TWO = [ToolCall("f", {"a": "x {"}), ToolCall("g.h", {})]
NAMED = '{"name": "f", "parameters": {"a": "x {"}}'


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one; a call is always one of its own."""
    groups = groupby(enumerate(pieces), lambda one: (one[1].kind, one[0] if one[1].kind == "call" else 0))
    return [Piece(kind, "".join(piece.text for _, piece in group)) for (kind, _), group in groups]


def streamed(text: str, size: int, names: tuple[str, ...] = NAMES, most: int | None = None) -> tuple[Any, Any]:
    """The pieces of a text on the way, and those at its end."""
    tool_text = ToolText(names, most)
    pieces = [piece for at in range(0, len(text), size) for piece in tool_text.push(text[at : at + size])]
    return joined(pieces), tool_text.rest(parse(text, names)[:most])


def called(*calls: ToolCall) -> list[Piece]:
    return [piece for call in calls for piece in (Piece("call", call.name), Piece("arguments", dumped(call.arguments)))]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("Hello, world", ""),
        ('{"name": "x", "parameters": {}}', '{"name": "x", "parameters": {}}'),
        ('  \n{"name"', '  \n{"name"'),
        ("[x(a=1)]", "[x(a=1)]"),
        ("<|python_tag|>f()", "<|python_tag|>f()"),
        ("Well: <function=x>{}</function>", "<function=x>{}</function>"),
        ("a < b <func", "<func"),
        ("a <b> c", ""),
        ("see {a}", ""),
        ("", ""),
        ("  ", "  "),
    ],
)
def test_what_may_be_a_call_waits(text: str, held: str, size: int) -> None:
    shown, rest = streamed(text, size)
    assert "".join(piece.text for piece in shown) == (text.removesuffix(held) if held else text)
    assert rest == ([Piece("text", held)] if held else [])


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(
    "text",
    [
        f'{NAMED}; {{"name": "g.h", "parameters": {{}}}}',
        f'<|python_tag|>\n{NAMED}\n{{"type": "function", "name": "g.h", "arguments": {{ }}}}',
        'Well: <function=f>{"a": "x {"}</function> and <function=g.h> {}</function>',
    ],
)
def test_arguments_come_as_they_are_written(text: str, size: int) -> None:
    before = [Piece("text", "Well: ")] if text.startswith("Well") else []
    assert streamed(text, size) == ([*before, *called(*TWO)], [])
    assert streamed(text, size, most=1) == ([*before, *called(TWO[0])], [])
    assert text_before_calls(text) == "".join(piece.text for piece in before)
    tool_text = ToolText(NAMES)
    at = text.index('"a"') + 8
    assert tool_text.push(text[:at])[-1].kind == "arguments"  # before the call is over


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize(
    "text",
    [
        '[f(a="x {"), g.h()]',
        '{"parameters": {"a": "x {"}, "name": "f"}; {"name": "g.h", "parameters": {}}',
        '{"name": "f", "parameters": "{\\"a\\": \\"x {\\"}"}; {"name": "g.h", "parameters": {}}',
    ],
)
def test_calls_of_other_forms_come_whole(text: str, size: int) -> None:
    assert streamed(text, size) == ([], called(*TWO))


def test_calls_after_one_with_more_fields_come_whole() -> None:
    text = '{"name": "f", "parameters": {"a": "x {"}, "id": 1}; {"name": "g.h", "parameters": {}}'
    assert streamed(text, 4) == (called(TWO[0]), called(TWO[1]))


@pytest.mark.parametrize("text", [NAMED[:-9], '{"name": "f", "parameters": {"a": oops}}', f"{NAMED}; oops"])
def test_what_is_cut_or_damaged_after_it_has_begun_is_no_text(text: str) -> None:
    shown, rest = streamed(text, 3)
    assert [piece.kind for piece in shown] == ["call", "arguments"]
    assert rest == []


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.none(), max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3), st.integers(1, 20), st.booleans()
)
def test_any_calls_in_any_pieces(calls: list[tuple[str, dict[str, Any]]], size: int, is_tagged: bool) -> None:
    made = [ToolCall(name, arguments) for name, arguments in calls]
    if is_tagged:
        text = " ".join(f"<function={name}>{json.dumps(arguments)}</function>" for name, arguments in calls)
    else:
        text = "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls)
    assert parse(text, NAMES) == made
    assert streamed(text, size) == (called(*made), [])
