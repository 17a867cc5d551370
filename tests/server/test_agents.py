"""What coding agents send, as Claude Code 2.1.197 and Codex 0.171.0 sent it to a recording proxy, with shorter texts.

Their own tools and prompts have 28,000 and 13,000 tokens of cria; the shape of each field is theirs.
"""

import json
from typing import Any

import httpx
import pytest

from llamita.llm import LLM
from tests.server.serving import Running

BETAS = (
    "claude-code-20250219,interleaved-thinking-2025-05-14,thinking-token-count-2026-05-13,"
    "context-management-2025-06-27,prompt-caching-scope-2026-01-05,mid-conversation-system-2026-04-07,effort-2025-11-24"
)
CLAUDE_HEADERS = {
    "accept": "application/json",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)",
    "x-api-key": "none",
    "x-app": "cli",
    "x-stainless-retry-count": "0",
    "accept-encoding": "gzip, deflate, br, zstd",
}
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
CACHED = {"cache_control": {"type": "ephemeral"}}
READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": SCHEMA,
        "type": "object",
        "properties": {"file_path": {"description": "The absolute path", "type": "string"}},
        "required": ["file_path"],
        "additionalProperties": False,
    },
}
TASKS = {
    "name": "TaskList",
    "description": "Lists tasks.",
    "input_schema": {"$schema": SCHEMA, "type": "object", "properties": {}, "additionalProperties": False},
}
BEGUN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n\n"},
            {"type": "text", "text": "Who are you?", **CACHED},
        ],
    },
    {"role": "system", "content": "Available agent types: claude."},
]
CLAUDE: dict[str, Any] = {
    "model": "cria",
    "messages": BEGUN,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.84c; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
    ],
    "tools": [READ, TASKS],
    "metadata": {"user_id": '{"device_id":"88f4","account_uuid":"","session_id":"8780"}'},
    "max_tokens": 32_000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}


def claude(server: Running, body: dict[str, Any], path: str = "/v1/messages?beta=true") -> httpx.Response:
    return server.post(path, body, **CLAUDE_HEADERS)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_claude_codes_first_requests_are_answered(server: Running, cria: LLM) -> None:
    assert server.client.head("/", headers={"user-agent": "Bun/1.4.0"}).status_code == 200
    found = events(claude(server, CLAUDE | {"temperature": 0}))
    assert [found[0]["type"], found[-1]["type"]] == ["message_start", "message_stop"]
    text = "".join(one["delta"]["text"] for one in found if one["type"] == "content_block_delta")
    plain = [
        {"role": "system", "content": CLAUDE["system"][0]["text"] + "You are an agent."},
        {"role": "user", "content": BEGUN[0]["content"][0]["text"] + "Who are you?"},
        {"role": "system", "content": BEGUN[1]["content"]},
    ]
    tools = [
        {"type": "function", "function": {"name": one["name"], "description": one["description"],
                                          "parameters": one["input_schema"]}}
        for one in (READ, TASKS)
    ]  # fmt: skip
    assert text == cria.chat(plain, tools=tools, temperature=0).text


def test_claude_codes_models_and_counts(server: Running) -> None:
    listed = server.get("/v1/models?limit=1000&beta=true", **CLAUDE_HEADERS).json()
    assert [one["id"] for one in listed["data"]] == ["cria"]
    assert server.get("/v1/models/cria?beta=true", **CLAUDE_HEADERS).json()["display_name"] == "cria"
    asked = {name: CLAUDE[name] for name in ("model", "messages", "system", "tools", "thinking", "context_management")}
    whole = claude(server, asked, "/v1/messages/count_tokens?beta=true").json()["input_tokens"]
    less = claude(server, asked | {"messages": BEGUN[:1]}, "/v1/messages/count_tokens?beta=true").json()["input_tokens"]
    assert whole > less > 0


def test_claude_codes_turns_with_calls_side_by_side_go_on(server: Running) -> None:
    uses = [
        {"type": "tool_use", "id": f"toolu_{number}", "name": "TaskList", "input": {}, "caller": {"type": "direct"}}
        for number in range(2)
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_0", "content": "No tasks found"},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "No"}],
         "is_error": True, **CACHED},
    ]  # fmt: skip
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    turns = [
        *BEGUN,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "I look."}, *uses]},
        {"role": "user", "content": [*results, {"type": "text", "text": "<system-reminder>Go on</system-reminder>"}]},
    ]
    call = '{"name": "Read", "parameters": {"file_path": "/a"}}'
    found = events(claude(server, CLAUDE | {"messages": turns, "choice": [call], "temperature": 0}))
    (block,) = [one["content_block"] for one in found if one["type"] == "content_block_start"]
    assert (block["type"], block["name"]) == ("tool_use", "Read")
    parts = [one["delta"]["partial_json"] for one in found if one["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == {"file_path": "/a"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]}, "Anthropic's own tools"),
        ({"messages": [{"role": "user", "content": "llama " * 520}]}, "prompt is too long: "),
        ({"messages": [{"role": "system", "content": "a"}, *BEGUN]}, "the first message is of role system"),
        ({"messages": [*BEGUN, {"role": "system", "content": [{"type": "tool_use", "id": "a", "name": "Read",
                                                               "input": {}}]}]}, "of role system has texts alone"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [
            {"type": "image", "source": {"type": "base64", "data": ""}}]}]}]}, "the models read text alone"),
    ],
)  # fmt: skip
def test_what_claude_code_may_not_send_is_refused_in_one_sentence(
    server: Running, fields: dict[str, Any], says: str
) -> None:
    answer = claude(server, CLAUDE | fields)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert says in answer.json()["error"]["message"]


def test_claude_code_reads_how_many_tokens_are_too_many(server: Running) -> None:
    long = {"messages": [{"role": "user", "content": "llama " * 520}], "tools": [], "system": "", "stream": False}
    counted = claude(server, {"model": "cria", "messages": long["messages"]}, "/v1/messages/count_tokens")
    assert "tokens > 511 maximum" in counted.json()["error"]["message"]
    assert "tokens > 511 maximum" in claude(server, CLAUDE | long).json()["error"]["message"]


def codex_message(role: str, text: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "id": "msg_5f4e", "role": role, "content": [{"type": kind, "text": text}]}


def codex_tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    return {"type": "function", "name": name, "description": "Do it.", "strict": False, "parameters": parameters}


SPACE = {
    "type": "namespace",
    "name": "multi_agent_v1",
    "description": "Tools for sub-agents.",
    "tools": [codex_tool("close_agent"), codex_tool("spawn_agent")],
}
CODEX: dict[str, Any] = {
    "model": "cria",
    "stream": True,
    "input": [
        codex_message("developer", "You are a coding agent."),
        codex_message("developer", "The sandbox is read-only."),
        codex_message("user", "<environment_context><cwd>/work</cwd></environment_context>"),
        codex_message("user", "Who are you?"),
    ],
    "tools": [codex_tool("get_goal"), SPACE, {"type": "web_search", "external_web_access": False}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22c00-959b-79c3-810e-3c99d12cc4ca",
    "client_metadata": {"turn_id": "01a22c00", "x-codex-window-id": "01a22c00:0"},
}
CODEX_HEADERS = {
    "accept": "text/event-stream",
    "authorization": "Bearer none",
    "originator": "codex_exec",
    "session-id": "01a22c00",
    "user-agent": "codex_exec/0.171.0 (Debian 12.0.0; x86_64) dumb (codex_exec; 0.171.0)",
    "x-codex-turn-metadata": '{"sandbox":"seccomp"}',
}
CLOSE = '{"name": "multi_agent_v1.close_agent", "parameters": {}}'


def codex(server: Running, body: dict[str, Any]) -> httpx.Response:
    return server.post("/v1/responses", body, **CODEX_HEADERS)


def test_codexs_first_request_is_answered(server: Running) -> None:
    found = events(codex(server, CODEX))
    assert [found[0]["type"], found[-1]["type"]] == ["response.created", "response.completed"]
    response = found[-1]["response"]
    assert response["usage"]["total_tokens"] > 0
    assert [tool["type"] for tool in response["tools"]] == ["function", "namespace"]  # those that can be called


def test_a_function_of_a_namespace_is_called_and_its_result_read(server: Running) -> None:
    found = events(codex(server, CODEX | {"choice": [CLOSE], "temperature": 0}))
    (item,) = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert (item["namespace"], item["name"], item["arguments"]) == ("multi_agent_v1", "close_agent", "{}")
    whole = codex(server, CODEX | {"choice": [CLOSE], "temperature": 0, "stream": False}).json()["output"]
    assert (whole[0]["namespace"], whole[0]["name"]) == ("multi_agent_v1", "close_agent")
    chosen = {"type": "function", "name": "multi_agent_v1.close_agent"}
    (forced,) = codex(server, CODEX | {"tool_choice": chosen, "stream": False}).json()["output"]
    assert (forced["type"], forced["namespace"], forced["name"]) == (
        "function_call", "multi_agent_v1", "close_agent",
    )  # fmt: skip
    asked = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "closed"}
    turns = [*CODEX["input"], asked, item, output]
    assert events(codex(server, CODEX | {"input": turns}))[-1]["type"] == "response.completed"
    read = server.post("/v1/responses/input_tokens", {"model": "cria", "input": turns}).json()["input_tokens"]
    plain = {name: value for name, value in item.items() if name != "namespace"}
    less = server.post("/v1/responses/input_tokens", {"model": "cria", "input": [*turns[:-2], plain, output]}).json()
    assert read > less["input_tokens"]  # the model reads its full name


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ({"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, "a tool is a function or a"),
        ({"type": "local_shell"}, "this server runs none itself"),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, "this server runs none itself"),
        (SPACE | {"tools": []}, "at least 1"),
        (SPACE | {"name": "a" * 64}, "pattern"),
    ],
)
def test_tools_that_the_server_would_run_are_refused_in_one_sentence(
    server: Running, tool: dict[str, Any], says: str
) -> None:
    error = codex(server, CODEX | {"tools": [tool]}).json()["error"]
    assert error["type"] == "invalid_request_error" and says in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "turn"),
    [
        ("/v1/messages", "messages", {"role": "user", "content": "a"}),
        ("/v1/responses", "input", codex_message("user", "a")),
        ("/v1/responses/input_tokens", "input", codex_message("user", "a")),
        ("/v1/chat/completions", "messages", {"role": "user", "content": "a"}),
    ],
)
def test_a_session_may_have_thousands_of_turns(server: Running, path: str, field: str, turn: dict[str, Any]) -> None:
    error = server.post(path, {"model": "cria", "max_tokens": 1, field: [turn] * 3000}).json()["error"]
    assert "prompt is too long: 18005 tokens > 511 maximum" in error["message"]  # the context alone is too small
    assert error.get("param", field) == field
