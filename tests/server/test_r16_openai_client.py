"""R16: the official openai client, streaming and not, over every endpoint."""

import math
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from llamita.llm import LLM
from tests.server.serving import Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Lima", "Oslo"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_r16_chat_writes_what_the_model_writes(client: openai.OpenAI, cria: LLM) -> None:
    alone = cria.chat(HELLO, max_tokens=20, temperature=0)
    answer = client.chat.completions.create(model="cria", messages=HELLO, max_tokens=20, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (alone.text, alone.finish_reason)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == alone.usage.completion_tokens
    assert answer._request_id
    assert answer.system_fingerprint
    timings = (answer.model_extra or {})["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == answer.usage.prompt_tokens
    assert timings["predicted_n"] == answer.usage.completion_tokens


def test_r16_chat_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "max_tokens": 20, "temperature": 1, "seed": 3}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_r7_n_choices_differ_and_can_be_had_again(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "max_tokens": 12, "temperature": 1.5, "seed": 1, "n": 3}
    texts = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert texts == pieces
    assert len(set(texts)) > 1


def test_r12_chat_logprobs_spell_the_text(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    (choice,) = client.chat.completions.create(**options, logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    spelled = b"".join(bytes(entry.bytes or ()) for entry in entries).decode()
    assert spelled.startswith(choice.message.content or "?")
    for entry in entries:
        top = [one.logprob for one in entry.top_logprobs]
        assert top == sorted(top, reverse=True)
        assert len(top) == 3
        assert entry.logprob == top[0]  # greedy
        assert sum(map(math.exp, top)) <= 1 + 1e-6


def test_r9_stop_and_limit_end_an_answer(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "temperature": 0}
    (free,) = client.chat.completions.create(**options).choices
    text = free.message.content or ""
    stop = text[3:5]
    (stopped,) = client.chat.completions.create(**options, stop=[stop]).choices
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    (cut,) = client.chat.completions.create(**options, max_completion_tokens=2).choices
    assert cut.finish_reason == "length"


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "choice",
    ["required", NAMED, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}],
)
def test_r16_a_tool_that_must_be_called_is_called(client: openai.OpenAI, choice: Any) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "temperature": 0}
    (whole,) = client.chat.completions.create(**options).choices
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    (call,) = whole.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments in ('{"city":"Lima"}', '{"city":"Oslo"}')) == ("weather", True)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    assert not any(chunk.delta.content for chunk in chunks)
    streamed = [one.function for chunk in chunks for one in chunk.delta.tool_calls or []]
    assert [one.name for one in streamed if one and one.name] == ["weather"]
    assert "".join((one and one.arguments) or "" for one in streamed) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_r16_a_text_is_a_text_though_there_are_tools(client: openai.OpenAI, choice: Any) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "temperature": 0}
    (whole,) = client.chat.completions.create(**options, max_tokens=10).choices
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, max_tokens=10, stream=True)]
    assert whole.message.tool_calls is None
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: text.startswith("{")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 7}}}},
            lambda text: text == "7",
        ),
        ({"extra_body": {"regex": "[0-9]{3}"}}, lambda text: len(text) == 3 and text.isdigit()),
        ({"extra_body": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"extra_body": {"grammar": 'start: "a" "b"'}}, lambda text: text == "ab"),
    ],
)
def test_r16_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI, fields: Any, fits: Any) -> None:
    options: Any = {"model": "cria", "messages": HELLO, "temperature": 0, "max_tokens": 40}
    text = client.chat.completions.create(**options, **fields).choices[0].message.content
    assert fits(text), text


def test_r16_what_only_we_take_is_taken(client: openai.OpenAI) -> None:
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "cache_salt": "a", "priority": -1, "new_field": [1]}
    bias = {"973": -100}
    answer = client.chat.completions.create(
        model="cria", messages=HELLO, max_tokens=4, logit_bias=bias, presence_penalty=1, extra_body=extra
    )
    assert "Hello" not in (answer.choices[0].message.content or "")


def test_r16_an_answer_goes_on_from_its_beginning(client: openai.OpenAI) -> None:
    messages: Any = [*HELLO, {"role": "assistant", "content": "Hello! I am"}]
    options: Any = {"model": "cria", "messages": messages, "temperature": 0, "max_tokens": 5}
    answer = client.chat.completions.create(**options, extra_body={"continue_final_message": True})
    assert (answer.choices[0].message.content or "").startswith(" ")


def test_r16_completions_of_texts_and_ids_agree(client: openai.OpenAI, cria: LLM) -> None:
    texts = ["Once upon a time", "Mia had a"]
    ids = [cria.tokenizer.encode(text) for text in texts]
    options: Any = {"model": "cria", "max_tokens": 6, "temperature": 0}
    of_texts = [choice.text for choice in client.completions.create(prompt=texts, **options).choices]
    of_ids = [choice.text for choice in client.completions.create(prompt=ids, **options).choices]
    one = client.completions.create(prompt=ids[1], **options).choices[0].text
    assert of_texts == of_ids == [cria.generate(text, max_tokens=6, temperature=0).text for text in texts]
    assert one == of_texts[1]


def test_r16_completion_logprobs_and_echo(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "max_tokens": 4, "temperature": 0, "logprobs": 2}
    (echoed,) = client.completions.create(prompt="Once upon", echo=True, **options).choices
    assert echoed.text.startswith("Once upon")
    noted = echoed.logprobs
    assert noted is not None
    columns = [noted.tokens, noted.token_logprobs, noted.top_logprobs, noted.text_offset]
    assert len({len(column or ()) for column in columns}) == 1
    assert (noted.token_logprobs or [])[0] is None
    for token, offset in list(zip(noted.tokens or [], noted.text_offset or [], strict=True))[1:]:
        assert echoed.text.startswith(token, offset)
    chunks = list(client.completions.create(prompt="Once upon", stream=True, **options))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert "Once upon" + text == echoed.text
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    streamed = [value for part in parts if part for value in part.token_logprobs or []]
    assert streamed == (noted.token_logprobs or [])[-len(streamed) :]


def test_r16_echo_is_streamed_first(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="cria", prompt="Once upon", echo=True, max_tokens=2, stream=True))
    assert chunks[0].choices[0].text == "Once upon"


def test_r16_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="cria", input=["Once upon a time", "a"])
    plain = client.embeddings.create(model="cria", input=["Once upon a time", "a"], encoding_format="float")
    assert [one.embedding for one in packed.data] == [one.embedding for one in plain.data]
    assert [one.index for one in plain.data] == [0, 1]
    for one in plain.data:
        assert sum(value * value for value in one.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 2


def test_response_and_its_events_agree(client: openai.OpenAI) -> None:
    options: Any = {"model": "cria", "input": "Hello", "temperature": 0}
    whole = client.responses.create(**options)
    assert whole.status == "completed"
    with client.responses.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert (final.usage, final.status) != (None, "in_progress")
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_response_events_are_numbered_and_a_call_is_one_item(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    events = list(
        client.responses.create(model="cria", input="Hello", tools=[tool], tool_choice="required", stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.type == "response.completed"
    (item,) = last.response.output
    assert (item.type, item.name) == ("function_call", "weather")


def test_response_takes_instructions_items_and_a_limit(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sun"},
    ]
    cut = client.responses.create(model="cria", input=items, instructions="Be short.", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    counted = client.responses.input_tokens.count(model="cria", input=items, instructions="Be short.")
    assert cut.usage is not None
    assert counted.input_tokens == cut.usage.input_tokens


def test_r16_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["cria"]
    assert client.models.retrieve("cria").id == "cria"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


def test_r4_errors_are_of_the_client_s_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="cria", messages=HELLO, temperature=3)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    assert wrong.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="cria", prompt="a " * 600)
    assert long.value.code == "context_length_exceeded"
    assert re.search(r"prompt is too long: \d+ tokens > 511 maximum", long.value.message)


def test_r2_a_prompt_read_before_is_counted_as_cached(client: openai.OpenAI) -> None:
    prompt = "The quick brown fox jumps over the lazy dog, and then the dog sleeps until the evening comes."
    options: Any = {"model": "cria", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    cold, warm = client.completions.create(**options), client.completions.create(**options)
    assert warm.usage is not None
    assert warm.usage.prompt_tokens_details is not None
    assert (warm.usage.prompt_tokens_details.cached_tokens or 0) > 1
    assert warm.choices[0].text == cold.choices[0].text
    other = client.completions.create(**options, extra_body={"cache_salt": "another"})
    assert other.usage is not None
    assert other.usage.prompt_tokens_details is not None
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert other.choices[0].text == cold.choices[0].text
