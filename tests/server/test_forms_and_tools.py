"""Tools and a schema of the text in one request: the schema is of the text, and a call may or must be there instead."""

import json
from typing import Any

import pytest

from llamita.llm import LLM
from tests.server.serving import Running
from tests.server.test_tool_streams import CHAT_TOOLS, CITY, HELLO, MESSAGE_TOOLS, RESPONSE_TOOLS

MOOD = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
CHAT = {"tools": CHAT_TOOLS, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": MOOD}}}
RESPONSE = {"tools": RESPONSE_TOOLS, "text": {"format": {"type": "json_schema", "name": "a", "schema": MOOD}}}
MESSAGE = {"tools": MESSAGE_TOOLS, "output_config": {"format": {"type": "json_schema", "schema": MOOD}}}


@pytest.mark.parametrize(
    ("path", "body", "choice", "kind"),
    [
        ("chat/completions", {"messages": HELLO, "max_tokens": 60, **CHAT}, "required", "tool_calls"),
        ("responses", {"input": "Hello", "max_output_tokens": 60, **RESPONSE}, "required", "function_call"),
        ("messages", {"messages": HELLO, "max_tokens": 60, **MESSAGE}, {"type": "any"}, "tool_use"),
    ],
)
def test_a_call_that_must_be_made_comes_before_the_schema(
    server: Running, path: str, body: dict[str, Any], choice: Any, kind: str
) -> None:
    answer = server.post(f"/v1/{path}", {"model": "cria", "temperature": 0, "tool_choice": choice, **body})
    assert answer.status_code == 200, answer.text
    assert f'"{kind}"' in answer.text and '"good"' not in answer.json().get("output", "")


def test_a_call_may_stand_in_the_place_of_the_schemas_text(server: Running, cria: LLM) -> None:
    body = {"model": "cria", "messages": ASKED, "temperature": 0, "max_tokens": 80, **CHAT}
    called = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert json.loads(called["message"]["tool_calls"][0]["function"]["arguments"]).keys() == CITY["properties"].keys()
    good = cria.tokenizer.encode('{"g')[-1]  # what the text alone has after its first token
    written = server.post("/v1/chat/completions", body | {"logit_bias": {str(good): 100}}).json()["choices"][0]
    assert json.loads(written["message"]["content"]) in ({"good": True}, {"good": False})
