"""What clients send, as a recording proxy had it: llm 0.36, LangChain 1.7, litellm 1.110, instructor 1.17, LlamaIndex
0.14, pydantic-ai 2.68, openai-agents 0.24 and open-webui 0.12. A new version of one that sends more is a new row.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.serving import Running

ASK: Any = [{"role": "user", "content": "What is the weather in Lima?"}]
MIA: Any = [{"role": "user", "content": "Mia is 28 years old."}]
HELLO: Any = [{"role": "user", "content": "Hello"}]
CITY = {"properties": {"city": {"title": "City", "type": "string", "maxLength": 12}}, "required": ["city"],
        "title": "weather_args", "type": "object", "additionalProperties": False}  # fmt: skip
NAMED = {"title": "Name", "type": "string", "maxLength": 12}
PERSON = {"description": "A person.", "properties": {"name": NAMED, "age": {"title": "Age", "type": "integer"}},
          "required": ["name", "age"], "title": "Person", "type": "object", "additionalProperties": False}  # fmt: skip
PERSONS = {"$defs": {"Person": PERSON}, "properties": {"tasks": {"items": {"$ref": "#/$defs/Person"}, "maxItems": 1,
           "title": "Tasks", "type": "array"}}, "required": ["tasks"], "type": "object"}  # fmt: skip


def tool(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Do it.", "parameters": schema, **more}}


def item(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": "Do it.", "parameters": schema, "strict": True}


def chosen(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def form(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, **more}}


def text(answer: dict[str, Any]) -> bool:
    if "output" in answer:
        return bool(answer["output"][0]["content"][0]["text"])
    if "content" in answer:
        return bool(answer["content"][0]["text"])
    choice = answer["choices"][0]
    return bool(choice["text"] if "text" in choice else choice["message"]["content"])


def called(answer: dict[str, Any]) -> bool:
    if "output" in answer:
        return bool(json.loads(answer["output"][0]["arguments"]))
    if "content" in answer:
        return bool(answer["content"][0]["input"])
    return bool(json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]))


def person(answer: dict[str, Any]) -> bool:
    content = answer["output"][0]["content"] if "output" in answer else answer.get("content")
    written = answer["choices"][0]["message"]["content"] if content is None else content[0]["text"]
    return json.loads(written).keys() == {"name", "age"}


def vectors(answer: dict[str, Any]) -> bool:
    return [one["index"] for one in answer["data"]] == [0, 1]


def counted(answer: dict[str, Any]) -> bool:
    return answer["input_tokens"] > 0


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PLAIN = {"frequency_penalty": 0, "presence_penalty": 0, "temperature": 0.7, "top_p": 1, "n": 1, "logprobs": None}
WEATHER = {"name": "weather", "description": "Do it.", "input_schema": CITY}
Row = tuple[str, dict[str, Any], Callable[[dict[str, Any]], bool]]
ROWS: dict[str, Row] = {
    "llm --schema": (CHAT, {"messages": MIA, "response_format": form(PERSON)}, person),
    "llm, a completion": ("/v1/completions", {"prompt": "Once", "max_tokens": 4, "logprobs": 2, "seed": 1}, text),
    "langchain-openai, a tool": (
        CHAT, {"messages": ASK, "tools": [tool("weather", CITY)], "tool_choice": chosen("weather"),
               "parallel_tool_calls": False, "seed": 1, "stream": False}, called,
    ),
    "langchain-openai, json_schema": (CHAT, {"messages": MIA, "response_format": form(PERSON, strict=True)}, person),
    "langchain-openai, OpenAI": ("/v1/completions", {"prompt": ["Once"], "max_tokens": 4, **PLAIN}, text),
    "langchain-openai, OpenAIEmbeddings": (
        "/v1/embeddings", {"input": ["a llama", "a car"], "encoding_format": "base64"}, vectors,
    ),
    "langchain-openai, responses": (
        RESPONSES, {"input": [{"type": "message", "role": "user", "content": "Hello"}], "stream": False, "store": False,
                    "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}}, text,
    ),
    "langchain-anthropic, a tool": (
        MESSAGES, {"messages": ASK, "max_tokens": 4096, "tools": [WEATHER],
                   "tool_choice": {"type": "tool", "name": "weather"}}, called,
    ),
    "langchain-anthropic, json_schema": (
        MESSAGES, {"messages": MIA, "max_tokens": 4096,
                   "output_config": {"format": {"type": "json_schema", "schema": PERSON}}}, person,
    ),
    "langchain-anthropic, thinking": (
        MESSAGES, {"messages": HELLO, "max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024},
                   "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, text,
    ),
    "litellm": (CHAT, {"messages": ASK, "tools": [tool("weather", CITY)], "tool_choice": "required",
                       "parallel_tool_calls": False}, called),
    "instructor, TOOLS": (CHAT, {"messages": MIA, "tools": [tool("Person", PERSON)], "tool_choice": chosen("Person")},
                          called),
    "instructor, JSON_SCHEMA": (CHAT, {"messages": MIA, "max_tokens": 200, "response_format": form(PERSONS)}, text),
    "instructor, RESPONSES_TOOLS": (
        RESPONSES, {"input": MIA, "tools": [item("Person", PERSON)],
                    "tool_choice": {"type": "function", "name": "Person"},
                    "text": {"format": {"type": "json_schema", "name": "Person", "strict": True, "schema": PERSON}}},
        called,
    ),
    "instructor, anthropic": (
        MESSAGES, {"messages": MIA, "max_tokens": 100,
                   "tools": [{"name": "Person", "description": "A person.", "input_schema": PERSON}],
                   "tool_choice": {"type": "tool", "name": "Person", "disable_parallel_tool_use": True}}, called,
    ),
    "llama-index": (CHAT, {"messages": ASK, "tools": [tool("weather", CITY, strict=False)], "tool_choice": "required",
                           "parallel_tool_calls": False, "temperature": 0.1, "stream": False}, called),
    "pydantic-ai": (CHAT, {"messages": MIA, "max_completion_tokens": 100, "response_format": form(PERSON, strict=True),
                           "stream": False}, person),
    "pydantic-ai, anthropic": (
        MESSAGES, {"messages": HELLO, "max_tokens": 16_384, "stream": False, "stop_sequences": ["zz"],
                   "system": [{"type": "text", "text": "Be brief."}]}, text,
    ),
    "pydantic-ai, a count": ("/v1/responses/input_tokens", {"input": [{"role": "user", "content": "Hello"}]}, counted),
    "openai-agents": (
        RESPONSES, {"input": MIA, "include": [], "instructions": "Be brief.", "max_output_tokens": 60, "tools": [],
                    "text": {"format": {"type": "json_schema", "name": "final_output", "strict": True,
                                        "schema": PERSON}}}, person,
    ),
    "openai-agents, a tool": (RESPONSES, {"input": ASK, "include": [], "tools": [item("weather", CITY)],
                                          "tool_choice": "required", "parallel_tool_calls": False}, called),
    "open-webui": (
        CHAT, {"messages": [{"role": "system", "content": "Be brief."}, *HELLO], "stream": False, "temperature": 0.5,
               "top_k": 20, "min_p": 0.05, "stop": ["zz"], "max_tokens": 50, "logit_bias": {"5": 1}, "num_ctx": 2048,
               "mirostat": 0, "repeat_penalty": 1.0}, text,
    ),
    "open-webui, a title": (CHAT, {"messages": HELLO, "stream": False, "max_tokens": 1000}, text),  # cria reads 512
    "open-webui, a count": ("/v1/messages/count_tokens", {"messages": HELLO, "max_tokens": 20}, counted),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_it_is_answered(server: Running, name: str) -> None:
    path, fields, is_right = ROWS[name]
    answer = server.post(path, {"model": "cria", **fields})
    assert answer.status_code == 200, answer.text
    assert is_right(answer.json()), answer.text


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        ("/v1/completions", {"prompt": "Once"}, "length"),
        (CHAT, {"messages": HELLO}, "length"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 100_000}, "length"),
        (RESPONSES, {"input": "Hello", "max_output_tokens": 100_000}, "max_output_tokens"),
    ],
)
def test_a_limit_beyond_the_context_ends_with_it(
    server: Running, path: str, fields: dict[str, Any], reason: str
) -> None:
    bias = {str(token_id): -100 for token_id in server.model.texts.tokenizer.eos_token_ids}
    answer = server.post(path, {"model": "cria", "max_tokens": 100_000, "logit_bias": bias, **fields}).json()
    assert answer["usage"]["total_tokens"] == 512
    assert f'"{reason}"' in json.dumps(answer)


def test_a_limit_that_no_context_has_is_refused(server: Running) -> None:
    error = server.post(CHAT, {"model": "cria", "messages": HELLO, "max_tokens": 10**9}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "invalid_value")


def test_llama_cpps_name_of_a_penalty_is_not_ignored(server: Running) -> None:
    error = server.post(CHAT, {"model": "cria", "messages": HELLO, "repeat_penalty": 1.1}).json()["error"]
    assert (error["param"], error["code"]) == ("repeat_penalty", "unsupported_parameter")
    assert "it is called repetition_penalty here" in error["message"]
