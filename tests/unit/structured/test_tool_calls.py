"""Calls read from what models write, and forced: whatever chance writes under the grammar is read back as valid."""

import pytest

from llamita.errors import UsageError
from llamita.structured.grammar import Constraint, Vocabulary, matches
from llamita.structured.tool_calls import STYLES, ToolCall, call_or_json, grammar, parse
from tests.unit.structured.test_grammar import tokenizer_of, written

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city // see http://a.b",
        "parameters": {
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "city": {"enum": ["Lima", 'La "Paz"', "Huánuco"]},
                "metric": {"type": "boolean", "description": "Celsius"},
                "where": {"$ref": "#/$defs/where"},
            },
            "required": ["city"],
            "$defs": {"where": {"type": ["null", "boolean"]}},
        },
    },
}
CLOCK = {"name": "clock"}
TOOLS = [WEATHER, CLOCK]


def is_valid(call: ToolCall) -> bool:
    if call.name == "clock":
        return call.arguments == {}
    arguments = call.arguments
    return (
        call.name == "get_weather"
        and arguments.keys() <= {"days", "city", "metric", "where"}
        and arguments["city"] in ("Lima", 'La "Paz"', "Huánuco")
        and arguments.get("days", 1) in range(1, 10)
        and arguments.get("metric", True) in (True, False)
        and arguments.get("where") in (None, True, False)
    )


@pytest.mark.parametrize("style", STYLES)
def test_every_seed_calls_a_tool_rightly(style: str) -> None:
    vocabulary = Vocabulary(tokenizer_of("byte-level"))
    calls: list[ToolCall] = []
    first = Constraint(grammar(TOOLS, style=style), vocabulary)
    for seed in range(4):
        for text in written([first.fork() for _ in range(15)], vocabulary, seed):
            found = parse(text, ["get_weather", "clock"])
            assert found, text
            calls += found
    assert all(map(is_valid, calls))
    assert {call.name for call in calls} == {"get_weather", "clock"}
    assert {frozenset(call.arguments) for call in calls} > {frozenset(), frozenset({"city"})}


PARSED = {
    '{"name": "f", "parameters": {"a": 1}}': [("f", {"a": 1})],
    '<|python_tag|>{"name": "f", "arguments": {"a": [null]}} ': [("f", {"a": [None]})],
    '{"name": "f", "arguments": "{\\"a\\": 2}"}': [("f", {"a": 2})],
    '{"name": "f", "parameters": {}}; {"parameters": {}, "name": "g"}\n{"name": "h", "parameters": {}}': [
        ("f", {}), ("g", {}), ("h", {}),
    ],
    '<function=f>{"a": "</function>"}</function>': [("f", {"a": "</function>"})],
    'I look.\n<function=f>{}</function> and <function=g> {"b": {}} </function>': [("f", {}), ("g", {"b": {}})],
    '[f(a=1), g.h(b="x, (y)", c=[1, {"d": None}], e=-2.5)]': [
        ("f", {"a": 1}), ("g.h", {"b": "x, (y)", "c": [1, {"d": None}], "e": -2.5}),
    ],
    "[f(a=true, b=null, c=[false])]": [("f", {"a": True, "b": None, "c": [False]})],
    r'[f(a="\d")]': [("f", {"a": r"\d"})],
}  # fmt: skip
NO_CALLS = [
    "", "Hello", "[1, 2]", "[see (1)]", "{", '{"a": 1}', '{"name": "f"}', '{"name": 1, "parameters": {}}',
    '{"name": "f", "parameters": []}', '{"name": "f", "parameters": {}} trailing', "[f(1)]", "[f(**{})]", "[f(a=b)]",
    "[f(a=__import__('os'))]", "[f(a={1, 2})]", "[f(a=b'x')]", "[f(x)(a=1)]", "<function=f>", "<function=f>[]",
    "<function=f>{", "[" * 5000, "[f(a=" + "-" * 50_000 + "1)]", "{" * 50_000, '{"a":' * 20_000, "[" + " " * 200_000,
    "[f(a=lambda: 1)]", "[f(a=1, a=2)]",
]  # fmt: skip


@pytest.mark.parametrize("text", PARSED)
def test_calls_are_read(text: str) -> None:
    assert [(call.name, call.arguments) for call in parse(text)] == PARSED[text]


@pytest.mark.parametrize("text", NO_CALLS, ids=lambda text: text[:24])
def test_plain_and_damaged_text_holds_no_call(text: str) -> None:
    assert parse(text) == []


def test_unknown_tools_are_no_calls() -> None:
    text = '{"name": "rm", "parameters": {}}'
    assert parse(text, ["ls"]) == []
    assert parse(text, ["rm"])


@pytest.mark.parametrize(
    ("tools", "style", "message"),
    [
        ([], "json", "there are no tools to call: give at least one"),
        (TOOLS, "xml", "tool-call style 'xml' is unknown: use json, tag, pythonic"),
        ([{"name": 'a"b'}], "json", "a tool is named 'a\"b': use letters"),
        ([{"parameters": {}}], "tag", "a tool is named None: use letters"),
        (["f"], "tag", "a tool is named None: use letters"),
        ([{"name": "f", "parameters": [1]}], "json", "the parameters of tool 'f' are no JSON schema of an object"),
        ([{"name": "f", "parameters": {"properties": 3}}], "pythonic", "the parameters of tool 'f' are no JSON"),
        ([{"name": "a-b"}], "pythonic", "'a-b' is no name in Python"),
        ([{"name": "f", "parameters": {"properties": {"from": {}}}}], "pythonic", "'from' is no name in Python"),
        ([{"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}}], "json", "the grammar is refused: "),
    ],
)
def test_wrong_tools_are_refused(tools: list, style: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Constraint(grammar(tools, style=style), Vocabulary(tokenizer_of("bytes")))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_text_of_a_schema_may_stand_in_the_place_of_a_call() -> None:
    number = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    either = call_or_json(TOOLS, {"type": "object", "additionalProperties": False, **number})
    texts = ['{"n": 5}', '{"name": "clock", "parameters": {}}']
    texts.append('{"name": "get_weather", "parameters": {"city": "Lima", "where": null}}')
    assert [text for text in texts if not matches(either, text)] == []
    assert not matches(either, '{"n": "a"}')
    assert not matches(either, '{"name": "get_weather", "parameters": {"city": "Rome"}}')
    with pytest.raises(UsageError, match="hiccup"):
        Constraint(call_or_json(TOOLS, {"type": "hiccup"}), Vocabulary(tokenizer_of("byte-level")))
