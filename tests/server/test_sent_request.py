"""What a request asked is found again without the server that answered it, whichever endpoint it was sent to."""

from typing import Any

import pytest

from llamita.engine.receipt import tokens_digest
from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.server.sent_request import prompts_of
from tests.server.serving import Running

ASKED: Any = [{"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]}]
TOOL = {"name": "f", "description": "a tool", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}, {"type": "function", "function": {"name": "g"}}]
SOME = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}
ALLOWED = {"type": "allowed_tools", "allowed_tools": SOME}
ITEMS = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": [{"role": "developer", "content": "Be brief."}, *ASKED]}),
    ("chat/completions", {"messages": ASKED, "tools": TOOLS, "tool_choice": "none"}),
    ("chat/completions", {"messages": ASKED, "tools": TOOLS, "tool_choice": ALLOWED}),
    ("chat/completions", {"messages": [*ASKED, {"role": "assistant", "content": "I"}], "continue_final_message": True}),
    ("completions", {"prompt": ["Once", "The dog"], "n": 2}),
    ("completions", {"prompt": [[5, 6], [7]]}),
    ("messages", {"messages": ASKED, "system": [{"type": "text", "text": "Be brief."}]}),
    ("messages", {"messages": [*ASKED, {"role": "assistant", "content": "I"}]}),
    ("messages", {"messages": ASKED, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
    ("responses", {"input": "Hi", "instructions": "Be brief."}),
    ("responses", {"input": ITEMS, "tools": [{"type": "function", **TOOL}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked"), REQUESTS)
def test_the_prompts_of_a_request_are_those_of_its_receipts(
    server: Running, cria: LLM, path: str, asked: dict[str, Any]
) -> None:
    most = "max_output_tokens" if path == "responses" else "max_tokens"
    body = {"model": "cria", most: 1, "receipt": True, **asked}
    answer = server.post(f"/v1/{path}", body).json()
    found = {tokens_digest(ids) for ids in prompts_of(cria.tokenizer, body)}
    assert {receipt["prompt"] for receipt in answer["receipts"]} <= found


def test_a_prompt_and_messages_of_templates_are_taken_too(cria: LLM) -> None:
    once = cria.tokenizer.encode("Once")
    assert prompts_of(cria.tokenizer, "Once") == prompts_of(cria.tokenizer, once) == [once]
    message = {"role": "ipython", "content": "5"}  # a role of Llama 3's template, which no endpoint takes
    assert len(prompts_of(cria.tokenizer, {"messages": [{"role": "user", "content": "2 + 3"}, message]})) == 1
    for nothing in ({}, {"prompt": {}}, [], None, 1, {"input": 2}):
        with pytest.raises(UsageError, match="neither messages nor a prompt nor an input"):
            prompts_of(cria.tokenizer, nothing)
