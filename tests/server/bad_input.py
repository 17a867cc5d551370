"""The corpus of bad input of serving.md 4.2: bodies, and fields of every endpoint that are wrong."""

import json
from typing import Any

from llamita.server.openai.other_servers import NOT_HERE

NAN, INFINITY = float("nan"), float("inf")
DEEP = b"[" * 2000 + b"]" * 2000

# Whole bodies, wrong for every endpoint.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "open": b"{",
    "no utf-8": b'{"model": "\xff"}',
    "bom": b'\xef\xbb\xbf{"model": "cria"}',
    "too large": b'{"model": "' + b"a" * 2_000_001 + b'"}',
    "deep": b'{"model": "cria", "messages": ' + DEEP + b"}",
    "long number": b'{"model": "cria", "n": ' + b"1" * 5000 + b"}",
    "half a surrogate": b'{"model": "cria", "prompt": "\\ud800", "input": "\\ud800", "messages": [{"role": "\\ud8"}]}',
    "trailing": b'{"model": "cria"} {}',
}
# What makes a good body, without its opening brace, a bad one.
SPOILT: dict[str, bytes] = {
    "twice": b'{"model": "cria", "model": "cria", ',
    "twice inside": b'{"model": "cria", "metadata": {"a": 1, "a": 2}, ',
    "nan": b'{"model": "cria", "unknown": [NaN], ',
    "infinity": b'{"model": "cria", "unknown": {"a": -Infinity}, ',
    "too large a number": b'{"model": "cria", "more": [{"x": 1e999}], ',
}
HELLO = [{"role": "user", "content": "a"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 1},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/responses/input_tokens": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": HELLO},
}
MODELS: list[Any] = [None, 123, "", "../../etc/passwd", "a" * 10_000, "unknown", "cria\0", ["cria"]]
NUMBERS: dict[str, list[Any]] = {
    "n": [-1, 0, 1.5, "2", True, 9, 10**9, [1]],
    "temperature": [-1, 2.1, NAN, INFINITY, "hot", True],
    "top_p": [0, -0.0, 1.1, -1, NAN, "1"],
    "top_k": [-2, 10**12, 1.5, "1"],
    "min_p": [2, -0.1, NAN],
    "presence_penalty": [2.01, -2.01, NAN],
    "frequency_penalty": [2.01, -2.01, NAN],
    "repetition_penalty": [0, -1, NAN, 1e9],
    "seed": [-(2**63) - 1, 2**64, 1.5, "1"],
    "priority": [2**70, 1.5, 10**6],
    "stop": ["", [""], ["a"] * 17, "a" * 10_000, ["a" * 10_000], [1], {"a": 1}],
    "stream": ["yes", 1],
    "cache_salt": [1, "a" * 1000],
}
BIASES: list[Any] = [
    {"-1": 1}, {"2048": 1}, {"x": 1}, {"1": 101}, {"1": NAN}, {str(i): 1 for i in range(100_000)}, [1], {"1": "1"},
    {"٣": 1},
]  # fmt: skip
SCHEMAS: list[Any] = [
    None,
    123,
    {"type": "hiccup"},
    {"type": "string", "pattern": "("},
    {"enum": [f"{number}" for number in range(20_000)]},
    {"$ref": "http://169.254.169.254/"},
]
FORMS: dict[str, list[Any]] = {
    "regex": ["(", "", "a" * 2000, 1, "(?=a)"],
    "choice": [[], [""], "yes", [1], ["a"] * 1000],
    "grammar": ["", "start: (", "start: missing", 1, "a" * 70_000],
}


def nested(depth: int) -> dict[str, Any]:
    """A JSON schema of objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def shared(base: dict[str, Any]) -> list[dict[str, Any]]:
    """Bodies that are wrong wherever texts are written."""
    fields = {**NUMBERS, "logit_bias": BIASES, **FORMS}
    found = [{**base, name: value} for name, values in fields.items() for value in values]
    found += [{**base, "model": model} for model in MODELS]
    found.append({name: value for name, value in base.items() if name != "model"})
    return [*found, {**base, "regex": "a", "choice": ["a"]}]


def called(arguments: str) -> list[dict[str, Any]]:
    """A conversation in which a function was called with these arguments."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


def chats() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/chat/completions."""
    base = {"model": "cria", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    contents = [None, 123, [], [image], [1], {"text": "a"}, [{"type": "text"}], [{"type": "text", "text": 1}], ["a"]]
    messages: list[Any] = [
        None, [], "x", [1], [{}], {"role": "user"}, [None], [base["messages"]],
        [{"role": 123, "content": "a"}], [{"role": "root", "content": "a"}], [{"content": "a"}],
        *([{"role": "user", "content": content}] for content in contents),
        [{"role": "user", "content": "a"}] * 10_000,
        [{"role": "user", "content": "a " * 5000}],
        [{"role": "user", "content": "a" * 1_000_000}],
        [{"role": "tool", "content": "a"}],
        *(called(arguments) for arguments in ('{"a": "\\ud800"}', '{"\\ud800": 1}', '{"a": NaN}', '{"a": 1e999}')),
        called(json.dumps({"a": "a" * 1_000_000})), called('{"a":' + "[" * 900 + "]" * 900 + "}"),
        [{"role": "user", "content": "a", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "["}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[]"}}]}],
    ]  # fmt: skip
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    tools: list[Any] = [
        [tool] * 1000, "f", [1], [{}], [{"type": "retrieval"}],
        *([{"type": "function", "function": {"name": name}}] for name in ("a b", "a\n", "", 1, "a" * 65, "é")),
        [{"type": "function", "function": {"name": "f", "parameters": "x"}}],
        [{"type": "function", "function": {"name": "f", "description": "a" * 1_000_000}}],
    ]  # fmt: skip
    forced: list[Any] = [
        {"type": 123}, {"type": "object", "properties": 5}, {"$ref": "http://169.254.169.254/"}, nested(400)
    ]  # fmt: skip
    formats: list[Any] = [
        "json", {"type": "sound"}, {"type": "json_schema"}, {"type": "json_object", "json_schema": {"schema": {}}},
        {"type": "json_object", "schema": {"type": "hiccup"}}, {"type": "text", "schema": {}},
        *({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}} for schema in SCHEMAS),
    ]  # fmt: skip
    found = shared(base)
    found += [{**base, "messages": value} for value in messages]
    found += [{**base, "tools": value} for value in tools]
    found += [{**base, "response_format": value} for value in formats]
    for name in ("max_tokens", "max_completion_tokens"):
        found += [{**base, name: value} for value in (0, -1, 1e9, NAN, 10**9, "1", True)]
    found += [{**base, "top_logprobs": 2}, {**base, "logprobs": 1}]
    found += [{**base, "logprobs": True, "top_logprobs": value} for value in (21, -1, True, "2")]
    found += [{**base, "tools": [tool], "tool_choice": value} for value in ("maybe", 1, {"type": "function"})]
    found.append({**base, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "g"}}})
    found.append({**base, "tools": [tool], "tool_choice": "required", "regex": "a"})
    for schema in forced:
        one = {"type": "function", "function": {"name": "f", "parameters": schema}}
        found.append({**base, "tools": [one], "tool_choice": "required"})
    found += [{**base, "tool_choice": "required"}, {**base, "stream_options": {"include_usage": True}}]
    found += [{**base, "functions": [{}]}, {**base, "audio": {}}, {**base, "chat_template": "{{ 1 }}"}]
    found += [{**base, name: 2} for name in NOT_HERE]
    found.append({**base, "chat_template_kwargs": {"chat_template": "{% for i in range(9**9) %}{% endfor %}"}})
    return [*found, {**base, "response_format": formats[-1], "regex": "a"}, {**base, "prediction": 1, "n": 0}]


def completions() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/completions."""
    base = {"model": "cria", "prompt": "Hi", "max_tokens": 2}
    prompts: list[Any] = [
        None, [], [[]], [-1], [2048], [2**63], [1.5], [True], ["a", [1]], [1] * 512, ["a"] * 10_000, [[1], "a"],
        {"a": 1}, 5, "a " * 5000, "a" * 1_000_000, [None],
    ]  # fmt: skip
    found = shared(base)
    found += [{**base, "prompt": value} for value in prompts]
    found += [{**base, "max_tokens": value} for value in (0, -1, 1e9, NAN, 10**9, "1", True)]
    found += [{**base, "logprobs": value} for value in (21, -1, True, 1.5)]
    found += [{**base, "suffix": "a"}, {**base, "best_of": 2}, {**base, "prompt": ["a"] * 60, "n": 2}]
    found += [{**base, name: 2} for name in NOT_HERE]
    return [*found, {**base, "stream_options": {}}]


def embeddings() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/embeddings."""
    base = {"model": "cria", "input": "Hi"}
    inputs: list[Any] = [
        None, [], [[]], [-1], [2048], [2**63], [1.5], [True], ["a", [1]], ["a"] * 10_000, 5, "a " * 5000,
        "a" * 1_000_000, [1] * 600,
    ]  # fmt: skip
    found = [{**base, "input": value} for value in inputs] + [{**base, "model": model} for model in MODELS]
    found += [{"input": "Hi"}, {"model": "cria"}]
    found += [{**base, "encoding_format": value} for value in ("int8", 1)]
    return found + [{**base, "dimensions": value} for value in (0, -1, 8, "256")]


def unnamed() -> list[Any]:
    """Names of models that are wrong where a request needs none."""
    return [model for model in MODELS if model is not None]


def tokens() -> list[dict[str, Any]]:
    """Wrong bodies of /tokenize."""
    base = {"prompt": "a"}
    found: list[dict[str, Any]] = [{}, {"prompt": None}, {"messages": None}]
    found += [{"prompt": value} for value in (1, ["a"], [1], True, {"a": 1})]
    found += [{**base, name: value} for name in ("add_special_tokens", "with_pieces") for value in (1, "yes")]
    found += [{**base, "messages": [{"role": "user", "content": "a"}]}, {**base, "model": "b"}]
    return [*found, *({**base, "model": model} for model in unnamed()), *conversations()]


def conversations() -> list[dict[str, Any]]:
    """Wrong bodies of /apply-template."""
    hi = [{"role": "user", "content": "Hi"}]
    fields = [{name: value for name, value in body.items() if name not in ("model", "max_tokens")} for body in chats()]
    found = [body for body in fields if set(body) == {"messages"} and body["messages"] != hi]
    found += [body for body in fields if set(body) == {"messages", "tools"}]
    return [*found, *({"messages": hi, "model": model} for model in unnamed())]


def ids() -> list[dict[str, Any]]:
    """Wrong bodies of /detokenize."""
    values: list[Any] = [None, "a", [-1], [2048], [1.5], [True], ["a"], [2**63], [[1]], {"a": 1}, [None]]
    found = [{}, *({"tokens": value} for value in values)]
    return [*found, *({"tokens": [1], "model": model} for model in unnamed())]


ENDPOINTS = {
    "/v1/chat/completions": chats,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/tokenize": tokens,
    "/detokenize": ids,
    "/apply-template": conversations,
}


def written(body: dict[str, Any]) -> bytes:
    """A body as JSON, with NaN and Infinity as Python writes them."""
    return json.dumps(body).encode()


def whole(path: str) -> dict[str, bytes]:
    """Wrong bodies of a path, as bytes, by names."""
    rest = json.dumps(GOOD[path]).encode()[1:]
    return BODIES | {name: start + rest for name, start in SPOILT.items()}
