"""/v1/responses and every event of its streams are as Open Responses and openai-python's types say."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from llamita.errors import NotFiniteError
from llamita.sampling import batch
from tests.server.open_responses import RESPONSE, schema_of
from tests.server.serving import Running

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
# What openai-python does not know: fields of Open Responses, ours, and those of the error that it raises.
MORE = {"store", "presence_penalty", "frequency_penalty", "bytes", "timings", "receipts", "error"}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
TOOLS = [{"type": "function", "name": name, "parameters": CITY} for name in ("weather", "time")]
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"input": "Hello", "instructions": "Be short.", "metadata": {"a": "b"}, "prompt_cache_key": "k"},
    "cut": {"input": "Hello", "max_output_tokens": 3, "top_logprobs": 2},
    "ended": {"input": "Hello", "top_logprobs": 1},  # by a token without text
    "textless": {"input": "Hello", "max_output_tokens": 3, "top_logprobs": 1, "logit_bias": {"2040": 100}},
    "forced": {"input": "Hello", "tools": TOOLS, "tool_choice": "required"},
    "named": {"input": "Hello", "tools": TOOLS, "tool_choice": {"type": "function", "name": "time"}},
    "free": {"input": "Hello", "tools": TOOLS, "parallel_tool_calls": False, "max_output_tokens": 20},
    "allowed": {
        "input": "Hello",
        "tools": TOOLS,
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
    },
    "form": {
        "input": [{"type": "reasoning", "id": "r", "summary": []}, {"role": "user", "content": "Hello"}],
        "text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}},
        "receipt": True,
    },
}


def ask(server: Running, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post("/v1/responses", {"model": "cria", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events, whose names are their types."""
    text = server.post("/v1/responses", {"model": "cria", "temperature": 0, "stream": True, **body}).text
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def unknown(value: Any) -> Iterator[str]:
    """The fields that openai-python has no type for."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from unknown(getattr(value, name, None))
    elif isinstance(value, list):
        for one in value:
            yield from unknown(one)


def check_event(event: dict[str, Any]) -> None:
    jsonschema.validate(event, schema_of(event["type"]))
    found = EVENT.validate_json(json.dumps(event), strict=True)
    assert found.type == event["type"]
    assert set(unknown(found)) <= MORE


def check_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers count on, and each thing is opened, filled and closed once; returns the items that were closed."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items: list[dict[str, Any]] = []
    pieces: dict[str, str] = {}
    opened: str | None = None
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                assert opened is None
                assert event["output_index"] == len(items)
                assert event["item"]["status"] == "in_progress"
                opened = event["item"]["id"]
            case "response.output_item.done":
                assert (event["item"]["id"], event["output_index"]) == (opened, len(items))
                assert event["item"]["status"] != "in_progress"
                items.append(event["item"])
                opened = None
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                pieces[event["item_id"]] = pieces.get(event["item_id"], "") + event["delta"]
            case "response.output_text.done":
                assert event["text"] == pieces.get(event["item_id"], "")
            case "response.function_call_arguments.done":
                assert event["arguments"] == pieces[event["item_id"]]
        if "item_id" in event:
            assert (event["item_id"], event["output_index"]) == (opened, len(items))
    assert opened is None
    for item in items:
        text = item["content"][0]["text"] if item["type"] == "message" else item["arguments"]
        assert text == pieces.get(item["id"], "")
    return items


@pytest.mark.parametrize("name", list(REQUESTS))
def test_a_whole_response(server: Running, name: str) -> None:
    answer = ask(server, REQUESTS[name])
    jsonschema.validate(answer, RESPONSE)
    assert set(unknown(Response.model_validate_json(json.dumps(answer), strict=True))) <= MORE
    assert answer["status"] == ("incomplete" if answer["incomplete_details"] else "completed")
    assert answer["tool_choice"] == REQUESTS[name].get("tool_choice", "auto")


@pytest.mark.parametrize("name", list(REQUESTS))
def test_every_event_of_a_stream(server: Running, name: str) -> None:
    events = stream(server, REQUESTS[name])
    for event in events:
        check_event(event)
    items = check_order(events)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last, whole = events[-1]["response"], ask(server, REQUESTS[name])
    assert last["output"] == items
    assert contents(last) == contents(whole)
    assert last["status"] == whole["status"] == events[-1]["type"].removeprefix("response.")


def contents(response: dict[str, Any]) -> list[Any]:
    """What the items of a response say."""
    kept = ("type", "status", "role", "content", "name", "arguments")
    return [{key: item[key] for key in kept if key in item} for item in response["output"]]


def test_a_stream_that_fails(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real = batch._together
    monkeypatch.setattr(batch, "_together", lambda *given: failing(real, *given))
    body = {"input": "Hello", "temperature": 1.0, "seed": 66, "max_output_tokens": 9}
    events = stream(server, body)
    for event in events:
        check_event(event)
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    asked: Any = {"model": "cria", "input": "Hello", "temperature": 1.0, "stream": True, "extra_body": {"seed": 66}}
    with (
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="not finite"),
    ):
        list(client.responses.create(**asked))


def failing(real: Any, key: Any, samplers: Any, logits: Any) -> Any:
    """Fails for the seed 66."""
    if any(one.generators and one.generators[0].initial_seed() == 66 for one in samplers):
        raise NotFiniteError("the numbers are not finite")
    return real(key, samplers, logits)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}},
            None,
        ),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"previous_response_id": "resp_1"}, None),
    ],
)
def test_what_cannot_be_had_is_refused(server: Running, fields: dict[str, Any], param: str | None) -> None:
    answer = server.post("/v1/responses", {"model": "cria", "input": "Hello", **fields})
    assert answer.status_code == 400
    assert (param or "") in str(answer.json()["error"]["param"] or answer.json()["error"]["message"])


def test_no_tool_is_called_where_none_may_be(server: Running) -> None:
    choice = {"type": "allowed_tools", "mode": "none", "tools": [{"type": "function", "name": "time"}]}
    plain = ask(server, {"input": "Hello", "tools": TOOLS, "tool_choice": "none"})
    assert contents(ask(server, {"input": "Hello", "tools": TOOLS, "tool_choice": choice})) == contents(plain)
