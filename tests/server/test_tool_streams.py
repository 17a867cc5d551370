"""Streams of tool calls as the official clients put them together: arguments come as they are written."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from llamita.engine.runner import StepRunner
from tests.server.serving import Running

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
NAMES = ("weather", "time")
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in NAMES]
RESPONSE_TOOLS: Any = [{"type": "function", "name": name, "parameters": CITY} for name in NAMES]
MESSAGE_TOOLS: Any = [{"name": name, "input_schema": CITY} for name in NAMES]
HELLO: Any = [{"role": "user", "content": "Hello"}]
ANSWERS = {
    "json": '{"name": "weather", "parameters": {"city": "Łódź"}}; {"name": "time", "parameters": {"city": "Oslo"}}',
    "tagged": 'Well: <function=weather>{"city": "Łódź"}</function> <function=time>{"city": "Oslo"}</function>',
    "pythonic": '[weather(city="Łódź"), time(city="Oslo")]',
}
CALLS = [("weather", {"city": "Łódź"}), ("time", {"city": "Oslo"})]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0) as client:
        yield client


def body(answer: str, **more: Any) -> dict[str, Any]:
    """Our own fields: the answer is this text."""
    return {"choice": [answer], "temperature": 0, **more}


def take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps take as long as a large model's, or a busy machine hands over several pieces at once."""
    run = StepRunner.run
    monkeypatch.setattr(StepRunner, "run", lambda *given: (time.sleep(0.02), run(*given))[1])


@pytest.mark.parametrize("form", list(ANSWERS))
def test_chat_completions(client: openai.OpenAI, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "tools": CHAT_TOOLS, "extra_body": body(ANSWERS[form])}
    whole = client.chat.completions.create(**options).choices[0]
    take_time(monkeypatch)
    with client.chat.completions.stream(**options) as stream:
        events = list(stream)
        choice = stream.get_final_completion().choices[0]
    found = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
    assert (found, choice.finish_reason) == (CALLS, "tool_calls")
    wanted = [call.function.arguments for call in whole.message.tool_calls or []]
    assert [call.function.arguments for call in choice.message.tool_calls or []] == wanted
    assert (choice.message.content or "") == (whole.message.content or "") == ("Well: " if form == "tagged" else "")
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 2 or form == "pythonic"
    assert len({call.id for call in choice.message.tool_calls or []}) == 2


def test_parallel_calls_of_n_choices_keep_apart(client: openai.OpenAI) -> None:
    for parallel, calls in ((True, CALLS), (False, CALLS[:1])):
        chunks = client.chat.completions.create(
            model="cria", messages=HELLO, tools=CHAT_TOOLS, n=2, stream=True, parallel_tool_calls=parallel,
            logprobs=True, extra_body=body(ANSWERS["json"]),
        )  # fmt: skip
        found: dict[tuple[int, int], list[str]] = {}
        noted = [0, 0]
        for chunk in chunks:
            for choice in chunk.choices:
                noted[choice.index] += len((choice.logprobs and choice.logprobs.content) or [])
                for call in choice.delta.tool_calls or []:
                    assert call.function is not None
                    pieces = found.setdefault((choice.index, call.index), [])
                    pieces.append(call.function.name or call.function.arguments or "")
        read = {place: (name, json.loads("".join(rest))) for place, (name, *rest) in found.items()}
        assert read == {(choice, index): call for choice in (0, 1) for index, call in enumerate(calls)}
        assert noted[0] == noted[1] > 0


@pytest.mark.parametrize("form", list(ANSWERS))
def test_responses(client: openai.OpenAI, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"model": "cria", "input": "Hello", "tools": RESPONSE_TOOLS, "extra_body": body(ANSWERS[form])}
    whole = client.responses.create(**options)
    take_time(monkeypatch)
    with client.responses.stream(**options) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert (whole.output_text, [item.type for item in whole.output]) == (
        final.output_text, [item.type for item in final.output]
    )  # fmt: skip
    assert final.output_text == ("Well: " if form == "tagged" else "")
    calls = [(item.name, json.loads(item.arguments)) for item in final.output if item.type == "function_call"]
    assert calls == CALLS
    assert {item.status for item in final.output if item.type in ("function_call", "message")} == {"completed"}
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2 or form == "pythonic"


@pytest.mark.parametrize("form", list(ANSWERS))
def test_messages(claude: anthropic.Anthropic, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "tools": MESSAGE_TOOLS, "max_tokens": 200}
    options["extra_body"] = body(ANSWERS[form])
    whole = claude.messages.create(**options)
    take_time(monkeypatch)
    with claude.messages.stream(**options) as stream:
        events = list(stream)
        final = stream.get_final_message()
    blocks = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
    assert (blocks, final.stop_reason) == (CALLS, "tool_use")
    text = [block.text for block in final.content if block.type == "text"]
    assert text == (["Well: "] if form == "tagged" else [])
    assert [block.type for block in whole.content] == [block.type for block in final.content]
    deltas = [event for event in events if event.type == "input_json"]
    assert len(deltas) > 2 or form == "pythonic"


def test_a_forced_call_comes_in_pieces(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    take_time(monkeypatch)
    options: Any = {"model": "cria", "messages": HELLO, "tools": CHAT_TOOLS, "tool_choice": "required"}
    chunks = list(client.chat.completions.create(**options, stream=True, temperature=0))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    first, *rest = calls
    assert first.function is not None
    assert (first.index, first.type, first.function.arguments) == (0, "function", "")
    assert first.function.name in NAMES
    assert {(call.id, call.type, call.function and call.function.name) for call in rest} == {(None, None, None)}
    text = "".join((call.function and call.function.arguments) or "" for call in rest)
    whole = client.chat.completions.create(**options, temperature=0).choices[0].message.tool_calls or []
    assert text == whole[0].function.arguments
    assert len(rest) > 2


CUT = '{"name": "weather", "parameters": {"city": "a long name of a city"}}'


def test_a_call_that_is_cut_stays_unfinished(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """The whole answer has it as text, and the reason is the same."""
    options: Any = {"model": "cria", "messages": HELLO, "tools": CHAT_TOOLS, "max_tokens": 19}
    whole = client.chat.completions.create(**options, extra_body=body(CUT)).choices[0]
    assert (whole.finish_reason, whole.message.tool_calls) == ("length", None)
    assert CUT.startswith(whole.message.content or "-")
    chunks = list(client.chat.completions.create(**options, stream=True, extra_body=body(CUT)))
    pieces = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert chunks[-1].choices[0].finish_reason == "length"
    text = "".join((piece and piece.arguments) or "" for piece in pieces)
    assert text
    assert '{"city":"a long name of a city"}'.startswith(text)
    final = client.responses.create(
        model="cria", input="Hello", tools=RESPONSE_TOOLS, max_output_tokens=19, stream=True, extra_body=body(CUT)
    )
    last: Any = list(final)[-1]
    assert (last.type, [item.status for item in last.response.output]) == ("response.incomplete", ["incomplete"])
    with claude.messages.stream(
        model="cria", messages=HELLO, tools=MESSAGE_TOOLS, max_tokens=19, extra_body=body(CUT)
    ) as stream:
        message = stream.get_final_message()
    assert (message.stop_reason, [block.type for block in message.content]) == ("max_tokens", ["tool_use"])


def test_what_only_looks_like_a_call_is_text(client: openai.OpenAI) -> None:
    answer = '{"name": "other", "parameters": {}}'
    options: Any = {"model": "cria", "messages": HELLO, "tools": CHAT_TOOLS, "extra_body": body(answer)}
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert chunks[-1].choices[0].finish_reason == "stop"
