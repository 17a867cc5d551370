"""The corpus of bad input of serving.md 4.2, for /v1/responses."""

from typing import Any

from tests.server.bad_input import MODELS, NAN, SCHEMAS, called, nested, shared

BASE: dict[str, Any] = {"model": "cria", "input": "Hi", "max_output_tokens": 2}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def responses() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/responses, and of a request that counts."""
    image = {"type": "input_image", "image_url": "http://169.254.169.254/"}
    contents: list[Any] = [
        None, 123, [], [1], ["a"], [{}], {"text": "a"}, [image], [{"type": "input_file", "file_url": "http://a/"}],
        [{"type": "input_text"}], [{"type": "input_text", "text": 1}], [{"type": "input_audio", "input_audio": {}}],
    ]  # fmt: skip
    calls = [message["tool_calls"][0]["function"] for message in called('{"a": NaN}')[1:]]
    inputs: list[Any] = [
        None, [], 1, [1], [{}], "a" * 1_000_000, "a " * 5000, True, {"role": "user", "content": "a"}, [None],
        [{"role": "user", "content": "a"}] * 10_000, [[{"role": "user", "content": "a"}]],
        *([{"role": role, "content": "a"}] for role in ("root", 123, "tool", None)), [{"content": "a"}],
        *([{"role": "user", "content": content}] for content in contents),
        *([{"type": "item_reference", "id": "a"}], [{"type": "message"}], [{"type": 1}], [{"type": "web_search_call"}]),
        *([{"type": "function_call", "call_id": "a", "name": "f", "arguments": text}] for text in ("[", "[]", "1e999")),
        *([{"type": "function_call", "call_id": "a", **function}] for function in calls),
        [{"type": "function_call", "name": "f", "arguments": "{}"}], [{"type": "function_call_output", "output": "a"}],
        [{"type": "function_call_output", "call_id": 1, "output": "a"}],
        [{"type": "function_call_output", "call_id": "a", "output": [image]}],
    ]  # fmt: skip
    tools: list[Any] = [
        1, "f", [1], [{}], [TOOL] * 1000, [{"type": "local_shell"}], [{"type": "function", "function": {"name": "f"}}],
        [{"type": "namespace", "name": "n"}], [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}],
        *([{**TOOL, "name": name}] for name in ("a b", "a\n", "", 1, "a" * 65, "é", None)),
        [{**TOOL, "parameters": "x"}], [{**TOOL, "description": "a" * 1_000_000}],
    ]  # fmt: skip
    formats: list[Any] = [{"type": "sound"}, {"type": "json_schema"}, 1, {"type": "json_schema", "schema": 123}]
    found = [{**BASE, "input": value} for value in inputs] + [{**BASE, "model": model} for model in MODELS]
    found += [{**BASE, "tools": value} for value in tools]
    found += [{**BASE, "text": {"format": value}} for value in formats]
    found += [{**BASE, "max_output_tokens": value} for value in (0, -1, NAN, "1", 1.5, True)]
    found += [{**BASE, "top_logprobs": value} for value in (21, -1, True, "2")]
    found += [{**BASE, "include": value} for value in ("a", [1], ["a"] * 17)]
    found += [
        {**BASE, "metadata": value} for value in ([], {"a": 1}, {"a": "a" * 513}, {f"{n}": "" for n in range(17)})
    ]
    found += [{**BASE, "instructions": value} for value in (1, ["a"], "a" * 1_000_000)]
    found += [{**BASE, "previous_response_id": "a"}, {**BASE, "background": True}, {**BASE, "truncation": "auto"}]
    return [*found, {"model": "cria"}, {"input": "Hi"}, {**BASE, "conversation": "a"}, {**BASE, "prompt": {"id": "a"}}]


def forced_responses() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/responses alone, whose answers would be wrong."""
    found = [*responses(), *(body for body in shared(BASE) if "n" not in body)]
    forms = [{"type": "json_schema", "name": "a", "schema": schema} for schema in SCHEMAS if isinstance(schema, dict)]
    found += [{**BASE, "text": {"format": form}} for form in (*forms, {"type": "json_schema", "schema": nested(400)})]
    found += [{**BASE, "tool_choice": value} for value in ("required", "maybe", {"type": "function", "name": "f"})]
    found += [{**BASE, "tools": [TOOL], "tool_choice": value} for value in ({"type": "function", "name": "g"}, 1)]
    for schema in ({"type": 123}, {"$ref": "http://169.254.169.254/"}, nested(400)):
        found.append({**BASE, "tools": [{**TOOL, "parameters": schema}], "tool_choice": "required"})
    return [*found, {**BASE, "max_output_tokens": 10**9}]


RESPONSE_ENDPOINTS = {"/v1/responses": forced_responses, "/v1/responses/input_tokens": responses}
