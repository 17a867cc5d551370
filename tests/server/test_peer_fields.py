"""Fields of vLLM's and llama.cpp's servers, which the clients and benchmarks of these send."""

import json
import re
from typing import Any

import pytest

from llamita.llm import LLM
from llamita.server.sent_request import prompts_of
from tests.server.serving import Running, chat

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ONCE: dict[str, Any] = {"model": "cria", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24}


def events(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = server.post(path, {**body, "stream": True}).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", ONCE),
        ("chat/completions", chat()),
        ("responses", {"model": "cria", "input": "Hello", "temperature": 0}),
        ("messages", {"model": "cria", "messages": HELLO, "temperature": 0}),
    ],
)
def test_an_answer_without_an_end_is_as_long_as_it_may_be(server: Running, path: str, body: dict[str, Any]) -> None:
    most = "max_output_tokens" if path == "responses" else "max_tokens"
    answer = server.post(f"/v1/{path}", {**body, most: 90, "ignore_eos": True, "logit_bias": {"2046": 100}}).json()
    usage = answer["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 90


def test_an_end_token_is_no_stop_reason(server: Running) -> None:
    body = chat(max_tokens=9, logit_bias={"2046": 100})
    (choice,) = server.post("/v1/chat/completions", body).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    stopped = chat(max_tokens=40, stop=["a", "e"])
    (choice,) = server.post("/v1/chat/completions", stopped).json()["choices"]
    last = events(server, "/v1/chat/completions", stopped)[-1]["choices"][0]
    assert choice["stop_reason"] == last["stop_reason"] in ("a", "e")


def test_benchmarks_get_the_tokens_that_they_ask_for(server: Running) -> None:
    asked = {"repetition_penalty": 1.0, "best_of": 1, "ignore_eos": True, "stream_options": {"include_usage": True}}
    assert (
        events(server, "/v1/completions", {**ONCE, "min_tokens": 24, **asked})[-1]["usage"]["completion_tokens"] == 24
    )


def test_a_token_or_a_text_ends_an_answer_and_may_be_part_of_it(server: Running, cria: LLM) -> None:
    whole = server.post("/v1/completions", ONCE).json()["choices"][0]["text"]
    ids = cria.generate(ONCE["prompt"], max_tokens=24, temperature=0.0).token_ids
    before, after = (cria.tokenizer.decode(ids[:number]) for number in (ids.index(ids[7]), ids.index(ids[7]) + 1))
    stop = whole[9:12]
    for ending, text, longer in (
        ({"stop_token_ids": [ids[7]]}, before, after),
        ({"stop": stop}, whole[: whole.index(stop)], whole[: whole.index(stop) + 3]),
    ):
        for shown, fields in ((text, ending), (longer, {**ending, "include_stop_str_in_output": True})):
            (choice,) = server.post("/v1/completions", {**ONCE, **fields}).json()["choices"]
            assert (choice["text"], choice["finish_reason"]) == (shown, "stop")
            assert choice["stop_reason"] == ending.get("stop", ids[7])
            chunks = events(server, "/v1/completions", {**ONCE, **fields})
            assert chunks[-1]["choices"][0]["stop_reason"] == choice["stop_reason"]
            assert "".join(one["choices"][0]["text"] for one in chunks) == shown


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop_token_ids", [10**6]), ("stop_token_ids", ["a"]), ("stop_token_ids", [-1]), ("ignore_eos", "yes")],
)
def test_endings_that_cannot_be_are_refused(server: Running, field: str, value: Any) -> None:
    answer = server.post("/v1/chat/completions", chat(**{field: value}))
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


@pytest.mark.parametrize("most", [0, 1])
def test_a_prompt_is_scored(server: Running, cria: LLM, most: int) -> None:
    prompts = [cria.tokenizer.encode(text) for text in ("Once upon a time there was", "Mia had a ball")]
    asked = {"model": "cria", "prompt": prompts, "max_tokens": most, "echo": True, "logprobs": 1, "temperature": 0}
    answer = server.post("/v1/completions", {**asked, "receipt": True}).json()
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        noted = cria.generate(prompt, max_tokens=1, prompt_logprobs=1).prompt_logprobs or []
        columns = choice["logprobs"]
        assert columns["token_logprobs"][1 : len(noted) + 1] == [one.logprob for one in noted]
        assert len(columns["tokens"]) == len(noted) + 1 + most and choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2 * most
    assert answer["timings"]["predicted_n"] == 2 * most
    assert [one["prompt_logprobs"] is None for one in answer["receipts"]] == [False, False]


def test_no_tokens_are_for_an_echo(server: Running) -> None:
    assert server.post("/v1/completions", {**ONCE, "max_tokens": 0}).status_code == 400
    body = {**ONCE, "max_tokens": 0, "echo": True}
    (choice,) = server.post("/v1/completions", body).json()["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == (ONCE["prompt"], None, "length")
    assert "".join(one["choices"][0]["text"] for one in events(server, "/v1/completions", body)) == ONCE["prompt"]


NUMBER: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"json": NUMBER}}, r'\{"a": ?[12]\}'),
    ({"structured_outputs": {"json": json.dumps(NUMBER)}}, r'\{"a": ?[12]\}'),
    ({"structured_outputs": {"json_object": True}, "max_tokens": 8}, r"\{.*"),
    ({"structured_outputs": {"regex": "a[bc]d"}}, "a[bc]d"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"structured_outputs": {"grammar": 'root ::= "x"{3} | [0-9]+ "!"'}}, "xxx|[0-9]+!?"),
    ({"structured_outputs": {"grammar": 'start: "x" /[0-3]/'}}, "x[0-3]"),
    ({"guided_json": NUMBER}, r'\{"a": ?[12]\}'),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"json_schema": {"const": "42"}}, '"42"'),
    ({"grammar": 'root ::= "a"{5,5}'}, "aaaaa"),
    ({"ebnf": 'root ::= "a"{5,5}'}, "aaaaa"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": NUMBER}}}, r'\{"a": ?[12]\}'),
]


@pytest.mark.parametrize(("form", "fits"), FORMS)
def test_an_answer_has_the_form_of_other_servers_fields(server: Running, form: dict[str, Any], fits: str) -> None:
    body = {"temperature": 1, "seed": 5, "max_tokens": 30, "receipt": True, **form}
    text = server.post("/v1/completions", {**ONCE, **body})
    assert text.is_success, text.text
    assert re.fullmatch(fits, text.json()["choices"][0]["text"], re.DOTALL)
    message = server.post("/v1/chat/completions", chat(**body)).json()["choices"][0]["message"]
    assert re.fullmatch(fits, message["content"], re.DOTALL)


@pytest.mark.parametrize(
    "form",
    [
        {"structured_outputs": {"json": 42}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"regex": "a", "json": NUMBER}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"structural_tag": "a"}},
        {"structured_outputs": {"regex": "a"}, "regex": "b"},
        {"structured_outputs": {"json": NUMBER}, "response_format": {"type": "json_object"}},
        {"json_schema": NUMBER, "guided_regex": "a"},
        {"guided_json": 42},
        {"grammar": "root ::= nope"},
        {"ignore_eos": True, "structured_outputs": {"choice": ["a"]}},
    ],
)
def test_forms_that_cannot_be_are_refused(server: Running, form: dict[str, Any]) -> None:
    for path, body in (("completions", ONCE), ("chat/completions", chat())):
        answer = server.post(f"/v1/{path}", {**body, **form})
        assert answer.status_code == 400 and answer.json()["error"]["message"], form


def test_a_conversation_is_written_as_its_fields_say(server: Running, cria: LLM) -> None:
    talk: dict[str, Any] = {"messages": HELLO}
    asked = server.post("/apply-template", talk).json()["prompt"]
    closed = server.post("/apply-template", {**talk, "add_generation_prompt": False}).json()["prompt"]
    assert (
        asked.startswith(closed) and asked.endswith("assistant<|end_header_id|>\n\n") and closed.endswith("<|eot_id|>")
    )
    ids = server.post("/tokenize", {**talk, "add_generation_prompt": False}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json()["prompt"] == closed
    usage = server.post("/v1/chat/completions", chat(max_tokens=1, add_generation_prompt=False)).json()["usage"]
    assert usage["prompt_tokens"] == len(ids)
    going = {"messages": [*HELLO, {"role": "assistant", "content": "Well,"}], "continue_final_message": True}
    text = server.post("/apply-template", {**going, "add_generation_prompt": False}).json()["prompt"]
    assert text == server.post("/apply-template", going).json()["prompt"] and text.endswith("Well,")


def test_a_template_reads_variables_of_the_request(monkeypatch: pytest.MonkeyPatch, server: Running, cria: LLM) -> None:
    template = "{{ bos_token }}{{ mood | default('plain') }}: {{ messages[0].content }}"
    monkeypatch.setattr(cria.tokenizer, "chat_templates", {"default": template})
    body = chat("Hi", max_tokens=1, chat_template_kwargs={"mood": "glad <|eot_id|>", "enable_thinking": False})
    text = server.post("/apply-template", {name: body[name] for name in ("messages", "chat_template_kwargs")}).json()
    assert text["prompt"] == "<|begin_of_text|>glad <|eot_id|>: Hi"
    count = server.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    assert count == len(cria.tokenizer.encode("glad <|eot_id|>: Hi"))  # what looks like a control token is text
    assert len(prompts_of(cria.tokenizer, body)[0]) == count


@pytest.mark.parametrize(
    "name", ["messages", "tools", "tokenizer", "template", "chat_template", "__class__", "a b", ""]
)
def test_variables_that_a_template_has_from_elsewhere_are_refused(server: Running, name: str) -> None:
    answer = server.post("/v1/chat/completions", chat(chat_template_kwargs={name: []}))
    assert answer.status_code == 400 and "is no name of a variable" in answer.json()["error"]["message"]


def test_a_message_does_not_go_on_and_end(server: Running) -> None:
    for path in ("/v1/chat/completions", "/tokenize", "/apply-template"):
        body = chat(continue_final_message=True, add_generation_prompt=True)
        assert server.post(path, body).status_code == 400


@pytest.mark.parametrize(("field", "value"), [("stop_regex", "a|b"), ("top_n_sigma", 1.0), ("max_new_tokens", 5)])
def test_what_would_change_an_answer_is_not_ignored(server: Running, field: str, value: Any) -> None:
    answer = server.post("/v1/completions", {**ONCE, field: value})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(f"{field} is not supported: ")
    assert server.post("/v1/completions", {**ONCE, field: None, "top_n_sigma": -1, "nobody_knows": value}).is_success


def test_a_prompt_without_its_first_token_is_not_another_prompt(server: Running) -> None:
    for path, body, usual in (
        ("completions", ONCE, True),
        ("chat/completions", chat(), False),
        ("embeddings", {"model": "cria", "input": "a"}, True),
    ):
        assert server.post(f"/v1/{path}", {**body, "add_special_tokens": usual}).is_success
        assert server.post(f"/v1/{path}", {**body, "add_special_tokens": not usual}).status_code == 400
    assert (
        server.post("/v1/embeddings", {"model": "cria", "input": "a", "truncate_prompt_tokens": 1}).status_code == 400
    )


@pytest.mark.parametrize("most", [0, 4])
def test_an_echoed_prompt_s_logprobs_are_streamed_before_the_text_s(server: Running, most: int) -> None:
    body = {**ONCE, "prompt": ["Once upon", "Mia had a"], "n": 2, "echo": True, "logprobs": 2, "max_tokens": most}
    whole = server.post("/v1/completions", body).json()["choices"]
    chunks = [one["choices"][0] for one in events(server, "/v1/completions", body)]
    for choice in whole:
        own = [one for one in chunks if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        noted = [one["logprobs"] for one in own if one["logprobs"]]
        assert {name: [value for one in noted for value in one[name]] for name in noted[0]} == choice["logprobs"]


def test_token_ids_are_told_whole_and_streamed(server: Running, cria: LLM) -> None:
    body = {**ONCE, "return_token_ids": True, "max_tokens": 9, "n": 2}
    whole = server.post("/v1/completions", body).json()["choices"]
    ids = cria.generate(ONCE["prompt"], max_tokens=9, temperature=0.0).token_ids
    prompt = cria.tokenizer.encode(ONCE["prompt"])
    for more in ({}, {"echo": True}, {"logprobs": 1}):
        chunks = [one["choices"][0] for one in events(server, "/v1/completions", {**body, **more})]
        for choice in whole:
            own = [one for one in chunks if one["index"] == choice["index"]]
            assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"] == prompt
            assert [i for one in own[:-1] for i in one["token_ids"]] == choice["token_ids"] == ids
    asked = chat(max_tokens=9, return_token_ids=True)
    answer, chunks = server.post("/v1/chat/completions", asked).json(), events(server, "/v1/chat/completions", asked)
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    written = [i for one in chunks for i in one["choices"][0].get("token_ids", ())]
    assert written == answer["choices"][0]["token_ids"]
    assert cria.tokenizer.decode(written) == answer["choices"][0]["message"]["content"]
    assert "token_ids" not in server.post("/v1/chat/completions", chat(max_tokens=1)).text


@pytest.mark.parametrize("most", [0, 2])
def test_how_probable_a_prompt_is_is_told_by_token_ids(server: Running, cria: LLM, most: int) -> None:
    expected = cria.generate(ONCE["prompt"], max_tokens=1, prompt_logprobs=most).prompt_logprobs or []
    for more in ({}, {"echo": True, "logprobs": 4}):
        body = {**ONCE, "prompt_logprobs": most, **more}
        first, *rest = server.post("/v1/completions", body).json()["choices"][0]["prompt_logprobs"]
        assert first is None
        for entry, found in zip(expected, rest, strict=True):
            own = found[str(entry.token_id)]
            assert (own["logprob"], own["decoded_token"]) == (entry.logprob, entry.text)
            likely = {one["rank"]: one["logprob"] for one in found.values()}  # of equal ones, either may be there
            assert [likely[rank] for rank in (1, 2)[:most]] == [one.logprob for one in entry.top]
            assert most <= len(found) <= most + 1
    answer = server.post("/v1/chat/completions", chat(max_tokens=1, prompt_logprobs=most)).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert server.post("/v1/chat/completions", chat(prompt_logprobs=1, stream=True)).status_code == 400
