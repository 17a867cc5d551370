"""/v1/messages with the official client: whole and streamed answers, tools, stops, errors, keys, and counts."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from llamita.llm import LLM
from llamita.server.keys import Keys
from tests.server.serving import Running, serving, wait_until

HELLO: Any = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"temperature": 0.0}
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather of a place",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Lima", "Oslo"]}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0) as made:
        yield made


def create(client: anthropic.Anthropic, messages: Any = HELLO, **options: Any) -> anthropic.types.Message:
    return client.messages.create(
        **{"model": "cria", "max_tokens": 40, "messages": messages, "extra_body": GREEDY, **options}
    )


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_is_what_the_model_says_in_a_chat(client: anthropic.Anthropic, cria: LLM) -> None:
    message = create(client)
    said = cria.chat(HELLO, max_tokens=40, temperature=0).text
    assert (text_of(message), message.stop_reason, message.stop_sequence) == (said, "end_turn", None)
    assert (message.type, message.role, message.model) == ("message", "assistant", "cria")
    assert message.id.startswith("msg_")
    assert message._request_id is not None


def test_a_system_prompt_and_blocks_reach_the_model(client: anthropic.Anthropic, cria: LLM) -> None:
    plain = [{"role": "system", "content": "Be brief."}, *HELLO]
    said = cria.chat(plain, max_tokens=40, temperature=0).text
    for system in ("Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]):
        blocks = [
            {"type": "text", "text": "Who are", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": " you?"},
        ]
        assert text_of(create(client, [{"role": "user", "content": blocks}], system=system)) == said


def test_a_stream_has_the_events_in_order_and_the_same_message(client: anthropic.Anthropic) -> None:
    whole = create(client)
    with client.messages.stream(model="cria", max_tokens=40, messages=HELLO, extra_body=GREEDY) as stream:
        kinds = [event.type for event in stream if event.type in RAW]
        streamed = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert text_of(streamed) == text_of(whole)
    assert (streamed.stop_reason, streamed.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)


RAW = (
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop",
)  # fmt: skip


def test_every_event_of_a_stream_has_its_type_as_its_name(server: Running) -> None:
    body = {"model": "cria", "max_tokens": 4, "messages": HELLO, "stream": True}
    answer = httpx.post(f"{server.address}/v1/messages", json=body)
    events = [dict(line.split(": ", 1) for line in part.splitlines()) for part in answer.text.strip().split("\n\n")]
    assert [event["event"] for event in events][:2] == ["message_start", "ping"]
    assert all(f'"type":"{event["event"]}"' in event["data"] for event in events)


def test_the_async_client_reads_a_stream_too(server: Running, cria: LLM) -> None:
    import asyncio

    async def written() -> str:
        async with anthropic.AsyncAnthropic(base_url=server.address, api_key="none") as client:
            stream = await client.messages.create(
                model="cria", max_tokens=40, messages=HELLO, stream=True, extra_body=GREEDY
            )
            pieces = [event.delta for event in [e async for e in stream] if event.type == "content_block_delta"]
            return "".join(piece.text for piece in pieces if piece.type == "text_delta")

    assert asyncio.run(written()) == cria.chat(HELLO, max_tokens=40, temperature=0).text


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"max_tokens": 3}, "max_tokens"), ({"stop_sequences": ["."]}, "stop_sequence"), ({}, "end_turn")],
)
def test_it_says_why_a_message_ended(options: dict[str, Any], reason: str, client: anthropic.Anthropic) -> None:
    message = create(client, **options)
    assert message.stop_reason == reason
    assert message.stop_sequence == ("." if reason == "stop_sequence" else None)
    assert "." not in text_of(message) or reason == "end_turn"


def test_more_tokens_than_the_context_has_end_with_it(client: anthropic.Anthropic, cria: LLM) -> None:
    bias = {str(token_id): -100 for token_id in cria.tokenizer.eos_token_ids}
    message = create(client, max_tokens=5_000, extra_body={"temperature": 0, "logit_bias": bias})
    assert message.stop_reason == "model_context_window_exceeded"
    assert (
        message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) + message.usage.output_tokens == 512
    )


def test_a_seed_makes_a_drawn_message_repeat(client: anthropic.Anthropic) -> None:
    drawn = {"temperature": 1.0, "seed": 7}
    story: Any = [{"role": "user", "content": "Tell me a story."}]
    one, other = (text_of(create(client, story, extra_body=drawn)) for _ in range(2))
    assert one == other
    assert one != text_of(create(client, story, extra_body={**drawn, "seed": 8}))


def test_an_assistant_turn_at_the_end_is_gone_on_from(client: anthropic.Anthropic) -> None:
    whole = text_of(create(client))
    begun: Any = [*HELLO, {"role": "assistant", "content": whole[:9]}]
    assert whole[:9] + text_of(create(client, begun)) == whole


def test_the_cached_part_of_a_prompt_is_counted_apart(client: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": "Say hello to the fox, the hen and the llama. " * 6}]
    total = client.messages.count_tokens(model="cria", messages=long).input_tokens
    create(client, long)
    usage = create(client, long).usage
    assert usage.cache_read_input_tokens is not None and usage.cache_read_input_tokens > 0
    assert usage.input_tokens + usage.cache_read_input_tokens == total


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_that_must_be_called_is_called(choice: Any, client: anthropic.Anthropic) -> None:
    ask: Any = [{"role": "user", "content": "What is the weather in Lima?"}]
    message = create(client, ask, tools=[TOOL], tool_choice=choice)
    (block,) = message.content
    assert block.type == "tool_use" and block.name == "get_weather" and block.input["city"] in ("Lima", "Oslo")
    assert (message.stop_reason, block.id.startswith("toolu_")) == ("tool_use", True)
    with client.messages.stream(
        model="cria", max_tokens=40, messages=ask, tools=[TOOL], tool_choice=choice, extra_body=GREEDY
    ) as stream:
        streamed = stream.get_final_message()
    assert [(one.type, one.input) for one in streamed.content if one.type == "tool_use"] == [("tool_use", block.input)]
    assert streamed.stop_reason == "tool_use"


def test_a_tools_result_goes_back_to_the_model(client: anthropic.Anthropic, cria: LLM) -> None:
    ask: Any = [{"role": "user", "content": "What is the weather in Lima?"}]
    called = create(client, ask, tools=[TOOL], tool_choice={"type": "any"})
    (block,) = called.content
    assert block.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "rain"}]}
    after: Any = [*ask, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    function = {"name": "get_weather", "arguments": dict(block.input)}
    plain = [
        *ask,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "x", "content": "rain"},
    ]
    said = cria.chat(plain, max_tokens=40, temperature=0).text
    assert text_of(create(client, after)) == said


def test_no_tool_is_called_where_none_may_be(client: anthropic.Anthropic) -> None:
    message = create(client, tools=[TOOL], tool_choice={"type": "none"})
    assert text_of(message) == text_of(create(client))


def test_an_answer_follows_a_schema(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    message = create(
        client, extra_body={**GREEDY, "output_config": {"format": {"type": "json_schema", "schema": schema}}}
    )
    assert json.loads(text_of(message)) in ({"n": 1}, {"n": 2})


def test_what_means_nothing_here_does_no_harm(client: anthropic.Anthropic) -> None:
    thought: Any = {"type": "thinking", "thinking": "hm", "signature": "x"}
    said: Any = {"type": "text", "text": "I am cria."}
    plain: Any = [*HELLO, {"role": "assistant", "content": [said]}, *HELLO]
    other: Any = [*HELLO, {"role": "assistant", "content": [thought, said]}, *HELLO]
    ignored = {
        "metadata": {"user_id": "x"},
        "service_tier": "auto",
        "thinking": {"type": "enabled", "budget_tokens": 9},
    }
    assert text_of(create(client, other, extra_body={**GREEDY, **ignored})) == text_of(create(client, plain))


def test_counts_are_those_of_the_answers(client: anthropic.Anthropic) -> None:
    options: Any = {"system": "Be brief.", "tools": [TOOL]}
    counted = client.messages.count_tokens(model="cria", messages=HELLO, **options).input_tokens
    usage = create(client, **options).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert counted > client.messages.count_tokens(model="cria", messages=HELLO).input_tokens


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "read nothing else"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
    ({"messages": [{"role": "user", "content": []}]}, "no text"),
    ({"messages": [{"role": "user", "content": "x " * 3000}]}, "shorten"),
    ({"tools": [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]}, "custom"),
    ({"tool_choice": {"type": "any"}}, "needs tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "name"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": float("1e9")}, "temperature"),
    ({"mcp_servers": [{"url": "x"}]}, "opens no connections"),
]


@pytest.mark.parametrize(("fields", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_in_anthropics_words(
    fields: dict[str, Any], says: str, client: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(client, extra_body=fields)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert says in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id == caught.value.response.headers["x-request-id"]


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(client, model="claude")
    assert caught.value.body["error"]["type"] == "not_found_error"  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def test_broken_json_is_an_error_of_this_dialect(server: Running) -> None:
    answer = httpx.post(f"{server.address}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "error")
    assert httpx.get(f"{server.address}/v1/messages").json()["error"]["type"] == "invalid_request_error"


def test_models_are_listed_for_this_client_too(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.display_name, model.type, model.lifecycle) == ("cria", "cria", "model", "active")
    assert abs(model.created_at.timestamp() - time.time()) < 86_400
    assert client.models.retrieve("cria") == model


def test_ts12_x_api_key_is_a_key(cria: LLM) -> None:
    with serving(cria, keys=Keys.of(["secret"])) as running:
        address = running.address
        with anthropic.Anthropic(base_url=address, api_key="secret", max_retries=0) as client:
            assert create(client).stop_reason == "end_turn"
        with (
            anthropic.Anthropic(base_url=address, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            create(client)
        assert caught.value.body["error"]["type"] == "authentication_error"  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def test_r19_an_answer_stops_when_its_client_leaves(client: anthropic.Anthropic, server: Running, cria: LLM) -> None:
    bias = {str(token_id): -100 for token_id in cria.tokenizer.eos_token_ids}
    stream = client.messages.create(
        model="cria", max_tokens=400, messages=HELLO, stream=True, extra_body={"logit_bias": bias}
    )
    for event in stream:
        if event.type == "content_block_delta":
            break
    stream.close()
    wait_until(lambda: server.model.engine.stats.running == 0, "an engine without work")
