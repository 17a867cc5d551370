"""OpenAI's requests: strict about what they know, at ease with what they do not."""

from typing import Any

import pytest
from pydantic import ValidationError

from llamita.server.errors import RequestError, failure_of
from llamita.server.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, ResponseFormat
from llamita.server.sampling_request import seeded, token_id

ALLOWED = (
    '{"type": "allowed_tools", "allowed_tools": {"mode": "MODE", "tools": '
    '[{"type": "function", "function": {"name": "b"}}]}}'
)
HELLO = '"model": "a", "messages": [{"role": "user", "content": "a"}]'


def chat(fields: str = "") -> ChatRequest:
    return ChatRequest.model_validate_json(f"{{{HELLO}{fields and ', '}{fields}}}")


def test_the_least_request_leaves_all_to_the_model() -> None:
    assert chat().sampling_options(10) == {}


def test_options_have_the_engine_s_names() -> None:
    given = chat(
        '"min_tokens": 3, "temperature": 0.5, "top_k": -1, "stop": "a", "logit_bias": {"3": 1}, "seed": 7, "regex": "a"'
    )
    expected = {
        "min_tokens": 3,
        "temperature": 0.5,
        "top_k": 0,
        "stop": "a",
        "logit_bias": {3: 1.0},
        "seed": 7,
        "regex": "a",
    }
    assert given.sampling_options(10) == expected


@pytest.mark.parametrize("fields", ['"n": null, "stop": null, "seed": null', '"new": {"a": [1]}', '"functions": []'])
def test_null_and_unknown_fields_are_let_be(fields: str) -> None:
    assert chat(fields).sampling_options(10) == {}


def test_a_refusal_of_an_earlier_answer_is_its_text() -> None:
    parts = '[{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]'
    asked = ChatRequest.model_validate_json(
        f'{{"model": "a", "messages": [{{"role": "assistant", "content": {parts}}}]}}'
    )
    assert asked.messages[0].for_template()["content"] == "ab"


@pytest.mark.parametrize("fields", ['"n": true', '"n": "1"', '"n": 1.0', '"temperature": NaN', '"stream": 1'])
def test_nothing_is_taken_for_something_else(fields: str) -> None:
    with pytest.raises(ValidationError):
        chat(fields)


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        ('"none"', [], None),
        ('"auto"', ["a", "b"], None),
        ('"required"', ["a", "b"], "required"),
        ('{"type": "function", "function": {"name": "b"}}', ["a", "b"], "b"),
        (ALLOWED.replace("MODE", "auto"), ["b"], None),
        (ALLOWED.replace("MODE", "required"), ["b"], "required"),
    ],
)
def test_a_choice_of_tools(choice: str, names: list[str], forced: str | None) -> None:
    tools = ", ".join(f'{{"type": "function", "function": {{"name": "{name}"}}}}' for name in "ab")
    asked = chat(f'"tools": [{tools}], "tool_choice": {choice}')
    assert [tool["function"]["name"] for tool in asked.callable_tools] == names
    assert asked.forced_call == forced
    other = ALLOWED.replace("MODE", "auto").replace('"b"', '"c"')
    with pytest.raises(RequestError, match="tool_choice names c, which is not among the tools"):
        _ = chat(f'"tools": [{tools}], "tool_choice": {other}').callable_tools


@pytest.mark.parametrize("text", ["-1", "10", "a", "", "1.5", " 1", "٣", "1_0"])
def test_keys_of_logit_bias_are_ids(text: str) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        token_id(text, 10)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [('"a"', ["a"]), ("[1, 2]", [[1, 2]]), ('["a", "b"]', ["a", "b"]), ("[[1], [2]]", [[1], [2]])],
)
def test_prompts_are_a_list_in_the_end(prompt: str, prompts: list[Any]) -> None:
    body = f'{{"model": "a", "prompt": {prompt}, "input": {prompt}}}'
    assert CompletionRequest.model_validate_json(body).prompts == prompts
    assert EmbeddingRequest.model_validate_json(body).inputs == prompts


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ('{"type": "text"}', None),
        ('{"type": "json_object"}', {"type": "object"}),
        ('{"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 1}}}', {"const": 1}),
    ],
)
def test_forms_are_schemas(text: str, schema: Any) -> None:
    assert ResponseFormat.model_validate_json(text).json_schema_option == schema


def test_each_of_n_texts_has_a_seed_of_its_own() -> None:
    assert seeded({"seed": 3}, 2) == {"seed": 5}
    assert seeded({}, 2) == {}


@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "file"])
def test_what_the_models_cannot_read_is_refused_in_one_sentence(kind: str) -> None:
    content = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "data:,"}}]
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": content}]})
    failure = failure_of(caught.value)
    assert failure.param == "messages.0.content.1.type"
    assert f"it is {kind!r}, and the models read text alone" in failure.message
