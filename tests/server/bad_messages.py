"""The corpus of bad input of serving.md 4.2, for Anthropic's API."""

from typing import Any

from tests.server.bad_input import MODELS, NUMBERS, SCHEMAS, nested, shared

HI: list[Any] = [{"role": "user", "content": "Hello"}]
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
# Fields of OpenAI's that this API has not; an unknown field is ignored.
NOT_HERE = ("n", "stop")


def used(value: Any) -> dict[str, Any]:
    """A conversation in which a tool was called with this input."""
    block = {"type": "tool_use", "id": "a", "name": "f", "input": value}
    return {"messages": [*HI, {"role": "assistant", "content": [block]}]}


def conversations() -> list[dict[str, Any]]:
    """Fields of a conversation that are wrong, of a request or of a count."""
    contents = [
        None, 123, [1], [{}], ["a"], [IMAGE], [{"type": "text"}], [{"type": "text", "text": 1}], {"text": "a"},
        [{"type": "tool_result"}], [{"type": "tool_result", "tool_use_id": 1}], [{"type": "document"}],
        [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}], [{"type": "server_tool_use"}], [],
    ]  # fmt: skip
    messages: list[Any] = [
        None, [], "x", [1], [{}], [None], [HI], [{"role": "user"}], [{"content": "a"}],
        [{"role": 123, "content": "a"}], [{"role": "root", "content": "a"}], [{"role": "system", "content": "a"}],
        HI * 10_000, [{"role": "user", "content": "a" * 1_000_000}], [{"role": "user", "content": "a " * 5000}],
        *([{"role": "user", "content": content}] for content in contents),
    ]  # fmt: skip
    tools: list[Any] = [
        1, "f", [{}], [{"name": "f"}], [TOOL] * 1000, [{"name": "f", "input_schema": "x"}],
        [{"name": "f", "input_schema": {}, "description": "a" * 1_500_000}],
        [{"type": "web_search_20250305", "name": "web_search"}],
        *([{"name": name, "input_schema": {}}] for name in ("a b", "a\n", "", 1, "a" * 129, "é")),
    ]  # fmt: skip
    found: list[dict[str, Any]] = [{"messages": value} for value in messages]
    found += [used("x"), used([1]), used(None), used({"a": "a" * 1_000_000})]
    found += [{"tools": value} for value in tools]
    found += [{"model": value} for value in MODELS]
    found += [{"system": value} for value in (1, [1], [{"type": "image"}], "a" * 1_000_000)]
    found += [{"tool_choice": value} for value in ("auto", {}, {"type": "some"}, {"type": "auto", "name": "f"})]
    found += [{"tools": [TOOL], "tool_choice": {"type": "tool"}}, {"tool_choice": {"type": "any"}}]
    return [*found, {"mcp_servers": [{"url": "http://169.254.169.254/"}]}, {"container": "a"}]


def messages() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/messages."""
    base = {"model": "cria", "max_tokens": 4, "messages": HI}
    formats: list[Any] = [
        {}, 1, {"type": "json_schema"}, {"type": "text", "schema": {}},
        *({"type": "json_schema", "schema": schema} for schema in (*SCHEMAS, nested(400))),
    ]  # fmt: skip
    forced: list[Any] = [
        {"type": 123}, {"type": "object", "properties": 5}, {"$ref": "http://169.254.169.254/"}, nested(400)
    ]  # fmt: skip
    found = [{**base, **fields} for fields in conversations()]
    found += [one for one in shared(base) if not any(name in one for name in NOT_HERE)]
    found += [{**base, "messages": [*HI, {"role": "assistant", "content": text}]} for text in ("Well, ", "a\n", " ")]
    found += [{**base, "max_tokens": value} for value in (None, 0, -1, 1.5, "4", True, 10**12, float("nan"))]
    found += [{**base, "stop_sequences": value} for value in (*NUMBERS["stop"], [None])]
    found += [{**base, "output_config": {"format": value}} for value in formats]
    for schema in forced:
        tools = [{"name": "f", "input_schema": schema}]
        found.append({**base, "tools": tools, "tool_choice": {"type": "any"}})
    found.append({**base, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}})
    return [*found, {"model": "cria", "messages": HI}, {"model": "cria", "max_tokens": 4}]


def counts() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/messages/count_tokens."""
    found = [{"model": "cria", "messages": HI, **fields} for fields in conversations()]
    return [*found, {"model": "cria"}, {"messages": HI}]


MESSAGE_ENDPOINTS = {"/v1/messages": messages, "/v1/messages/count_tokens": counts}
