"""Text in, text out: one prompt or several, streamed or whole, chats, and what is refused."""

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import llamita
from llamita.cache import saved
from llamita.errors import BrokenFileError, NotFoundError, UsageError
from llamita.generation.text_options import TextModel
from llamita.kernels.cpu.runtime.program import Program
from llamita.llm import LLM
from llamita.model.fingerprint import fingerprint
from llamita.structured import tool_calls
from tests.small import CONFIG, END, save_small_model


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    return llamita.load(small_path)


def test_the_same_seed_writes_the_same(llm: LLM) -> None:
    one = llm.generate("def add(a, b):", max_tokens=20, temperature=0.7, seed=0)
    assert one == llm.generate("def add(a, b):", max_tokens=20, temperature=0.7, seed=0)
    assert one.text != llm.generate("def add(a, b):", max_tokens=20, temperature=0.7, seed=1).text
    assert str(one) == one.text == llm.tokenizer.decode(one.token_ids)
    assert (one.usage.prompt_tokens, one.usage.completion_tokens, one.usage.total_tokens) == (15, 20, 35)
    assert (one.finish_reason, one.stop_reason) == ("length", None)


def test_several_prompts_are_each_as_if_alone(llm: LLM) -> None:
    prompts = ["a", "a longer one", [256, 65, 66, 67]]
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": [3, 4, 3]}):
        together = llm.generate(prompts, max_tokens=12, **options)
        for row, prompt in enumerate(prompts):
            single: dict[str, Any] = {**options}
            if "seed" in single:
                single["seed"] = single["seed"][row]
            assert llm.generate(prompt, max_tokens=12, **single) == together[row]
    assert llm.generate([]) == []
    assert len(llm.generate(["a"], max_tokens=1)) == 1


def test_a_stream_is_the_whole_text_in_pieces(llm: LLM) -> None:
    options: Any = {"max_tokens": 40, "temperature": 1.5, "seed": 2}
    stream = llm.stream("Once", **options)
    first = next(stream)
    assert stream.completion.finish_reason is None
    whole = llm.generate("Once", **options)
    assert first + "".join(stream) == whole.text
    assert stream.completion == whole


def test_stop_texts_and_end_tokens(llm: LLM) -> None:
    whole = llm.generate("abc", max_tokens=30, temperature=1.0, seed=7)
    stop = llm.tokenizer.decode(whole.token_ids)[5:8]
    stopped = llm.generate("abc", max_tokens=30, temperature=1.0, seed=7, stop=[stop, "never to be seen"])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.text == whole.text[: whole.text.index(stop)]


@pytest.mark.parametrize("way", [{"temperature": 0.0}, {"temperature": 2.0, "seed": 3}])
def test_a_text_has_its_least_tokens(llm: LLM, way: dict[str, Any]) -> None:
    ended = {"logit_bias": {END: 100.0}, "max_tokens": 9, **way}  # the end token is the likeliest
    assert llm.generate("abc", **ended).finish_reason == "stop"
    least = llm.generate("abc", min_tokens=4, **ended)
    assert (len(least.token_ids), least.finish_reason) == (5, "stop")  # the end token is the fifth
    assert [len(one.token_ids) for one in llm.generate(["abc", "b"], min_tokens=4, **ended)] == [5, 5]
    assert llm.generate("x" * 125, min_tokens=50, temperature=0.0).finish_reason == "length"


@pytest.mark.parametrize("count", [1, 2])
def test_a_text_ends_by_the_tokens_that_it_is_told(llm: LLM, count: int) -> None:
    options: Any = {"max_tokens": 12, "temperature": 1.0, "seed": 7}
    prompts = ["abc", "abc"][:count]
    whole = llm.generate(prompts, **options)[0]
    end = whole.token_ids[5]
    (short, *_) = llm.generate(prompts, stop_token_ids=[end], **options)
    least = whole.token_ids.index(end)
    assert short.token_ids == whole.token_ids[: least + 1]
    assert (short.finish_reason, short.stop_reason) == ("stop", end)
    assert short.text == llm.tokenizer.decode(short.token_ids[:-1])
    kept = llm.generate(prompts, stop_token_ids=[end], include_stop_str_in_output=True, **options)[0]
    assert (kept.token_ids, kept.text) == (short.token_ids, llm.tokenizer.decode(short.token_ids))
    later = llm.generate(prompts, stop_token_ids=[end], min_tokens=least + 3, **options)[0]
    assert end not in later.token_ids[: least + 3]


def test_end_tokens_end_nothing_where_they_are_ignored(llm: LLM) -> None:
    ended: Any = {"logit_bias": {END: 100.0}, "max_tokens": 6, "temperature": 0.0}
    assert llm.generate("abc", **ended).token_ids == [END]
    ignored = llm.generate("abc", ignore_eos=True, **ended)
    assert (ignored.token_ids, ignored.text, ignored.finish_reason) == ([END] * 6, "", "length")
    stopped = llm.generate("abc", ignore_eos=True, stop_token_ids=[END], **ended)
    assert (stopped.token_ids, stopped.stop_reason) == ([END], END)


def test_a_stop_text_may_be_part_of_the_answer(llm: LLM) -> None:
    options: Any = {"max_tokens": 30, "temperature": 1.0, "seed": 7}
    whole = llm.generate("abc", **options).text
    for stop in (whole[5:8], whole[9]):
        kept = llm.generate("abc", stop=stop, include_stop_str_in_output=True, **options)
        assert (kept.text, kept.stop_reason) == (whole[: whole.index(stop) + len(stop)], stop)


def test_the_context_ends_a_text(llm: LLM) -> None:
    long = llm.generate("x" * 100, temperature=0.0)
    assert long.usage.total_tokens == CONFIG.max_position_embeddings
    assert long.finish_reason == "length"


def test_chats(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|eot_id|>Hello"}]
    answer = llm.chat(messages, max_tokens=8, temperature=0.0)
    assert answer.prompt_token_ids.count(258) == 2  # the template's, not the user's
    assert "".join(llm.stream_chat(messages, max_tokens=8, temperature=0.0)) == answer.text


def test_a_prefix_changes_the_work_and_not_the_text(small_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, read = llamita.load(small_path, kernels="off"), list[int]()
    forward = type(llm.model).forward

    def counted(self: Any, *args: Any, **given: Any) -> Any:
        read.append(given["input_ids"].shape[1])
        return forward(self, *args, **given)

    monkeypatch.setattr(type(llm.model), "forward", counted)
    prefix, options = llm.new_prefix(), {"max_tokens": 6, "temperature": 0.0}
    text = "user: Hello"
    for turn in ("", " Again.", " And more."):
        text += turn
        kept = llm.stream(text, prefix=prefix, **options)
        text += "".join(kept)
        first_pass = read[-len(kept.completion.token_ids)]
        assert kept.completion == llm.generate(kept.completion.prompt_token_ids, **options)
    assert first_pass <= 12 < len(kept.completion.prompt_token_ids)
    other = llm.stream("something else", prefix=prefix, **options)
    assert "".join(other) == llm.generate("something else", **options).text


def test_a_prefix_survives_an_interruption(small_path: Path) -> None:
    llm = llamita.load(small_path, kernels="off")
    prefix, options = llm.new_prefix(), {"max_tokens": 9, "temperature": 0.0}
    layer = llm.model.model.layers[2]
    for allowed in (0, 1, 4):  # in the first pass, in the first step, later
        calls = iter(range(allowed))

        def interrupted(module: Any, inputs: Any, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        hook = layer.register_forward_pre_hook(interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(llm.stream("Hello", prefix=prefix, **options))
        hook.remove()
        assert "".join(llm.stream("Hello", prefix=prefix, **options)) == llm.generate("Hello", **options).text


def test_a_prefix_survives_an_interruption_of_the_kernels(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, options = llm.new_prefix(), {"max_tokens": 9, "temperature": 0.0}
    run, expected = Program.run, llm.generate("Hello", **options).text
    for allowed in (0, 1, 4):
        calls = iter(range(allowed))

        def interrupted(program: Program, threads: int | None = None, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            run(program, threads)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Program, "run", interrupted)
            list(llm.stream("Hello", prefix=prefix, **options))
        assert "".join(llm.stream("Hello", prefix=prefix, **options)) == expected


def test_the_checkpoint_gives_defaults(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = llm.generate("abc", max_tokens=8)
    assert greedy == llm.generate("abc", max_tokens=8, temperature=0.0)
    monkeypatch.setattr(llm.model, "generation_config", {"do_sample": True, "temperature": 2.0, "max_new_tokens": 5})
    drawn = llm.generate("abc", seed=1)
    assert drawn.usage.completion_tokens == 5
    assert drawn == llm.generate("abc", max_tokens=5, temperature=2.0, seed=1)
    assert llm.generate("abc", temperature=0.0).token_ids == greedy.token_ids[:5]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("x" * 127, {}, "128 tokens"),
        ([3, 260], {}, "token id 260"),
        ("a", {"max_tokens": 0}, "max_tokens is 0"),
        (None, {}, "a prompt is a text or a list of token ids, not None"),
        (5, {}, "a prompt is a text or a list of token ids, not 5"),
        (b"abc", {}, "a prompt is a text or a list of token ids, not b'abc'"),
        ({"a": 1}, {}, "a prompt is a text or a list of token ids, not {'a': 1}"),
        ([1.0, 2.0], {}, "a prompt is a text or a list of token ids, not 1.0"),
        ([1, "a"], {}, "a prompt is a text or a list of token ids, not .1, 'a'."),
        (["a", None], {}, "a prompt is a text or a list of token ids, not None"),
        ("a", {"temperature": -1}, "temperature"),
        ("a", {"top_p": 2, "seed": 1}, "top_p"),
        ("a", {"stop": ""}, "empty"),
        ("a", {"stop": b"x"}, "stop is b'x': give a text"),
        ("a", {"stop": [["x"]]}, r"stop is \[\['x'\]\]: give a text"),
        ("a", {"regex": re.compile("a")}, "regex is re.compile.*: give the text"),
        ("a", {"max_token": 3}, "'max_tokens'"),
        ("a", {"logprobs": -1}, "logprobs is -1"),
        ("a", {"regex": "a", "choice": ["a"]}, "regex and choice are two forms"),
        ("a", {"regex": "a", "heal": True}, "regex is of the answer alone"),
        ("a", {"json_schema": {"type": 5}}, "the grammar is refused"),
        (["a", "b"], {"temperature": 1.0, "seed": [1]}, "seed"),
        ("a", {"seed": 2**100}, "fits in 64 bits"),
        ("a", {"seed": 1.5}, "seed is 1.5"),
        ("a", {"max_tokens": 1.5}, "max_tokens is 1.5"),
        ("a", {"max_tokens": "3"}, "max_tokens is '3'"),
        ("a", {"min_tokens": -1}, "min_tokens is -1"),
        ("a", {"min_tokens": True}, "min_tokens is True"),
        ("a", {"min_tokens": 4, "max_tokens": 3}, "min_tokens is 4 and max_tokens 3"),
        ("a", {"min_tokens": 4, "regex": "a+"}, "min_tokens is 4, and regex says"),
        ("a", {"ignore_eos": True, "regex": "a+"}, "ignore_eos is True, and regex says"),
        ("a", {"stop_token_ids": 5}, "stop_token_ids is 5"),
        ("a", {"stop_token_ids": ["a"]}, "stop_token_ids is"),
        ("a", {"logprobs": 0.5}, "logprobs is 0.5"),
        ("a", {"logit_bias": {5: math.nan}}, "the bias of 5 is nan"),
        ("a", {"logit_bias": {10**30: 1.0}}, "outside the vocabulary of 260"),
        ("a", {"logit_bias": {-1: 1.0}}, "outside the vocabulary of 260"),
    ],
    ids=str,
)
def test_wrong_input(llm: LLM, prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.generate(prompt, **options)


def test_ids_come_in_every_form(llm: LLM) -> None:
    ids = [97, 98, 99]
    wanted = llm.generate(ids, max_tokens=4, temperature=0.0)
    for given in (
        tuple(ids),
        torch.tensor(ids),
        numpy.array(ids, dtype=numpy.int32),
        list(numpy.array(ids)),
        range(97, 100),
    ):
        assert llm.generate(given, max_tokens=4, temperature=0.0) == wanted  # type: ignore[arg-type]  # pyright: ignore
        assert llm.stream(given, max_tokens=4, temperature=0.0).whole() == wanted  # type: ignore[arg-type]  # pyright: ignore
    for several in (torch.tensor([ids, ids]), [torch.tensor(ids), ids], (one for one in [ids, ids])):
        assert llm.generate(several, max_tokens=4, temperature=0.0) == [wanted] * 2  # type: ignore[arg-type]  # pyright: ignore


def test_an_empty_prompt(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llm.generate("", max_tokens=3).prompt_token_ids == [256]  # the model's first token is something to continue
    monkeypatch.setattr(type(llm.tokenizer), "encode", lambda *_, **__: [])
    with pytest.raises(UsageError, match="empty"):
        llm.generate("")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    save_small_model(tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    config = config.replace('"vocab_size": 260', '"vocab_size": 259').replace(
        '"pad_token_id": 259', '"pad_token_id": 0'
    )
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(BrokenFileError, match="ids up to 259, but the model only 259"):
        llamita.load(tmp_path)


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        llamita.load(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"config\.json"):
        llamita.load(tmp_path)
    save_small_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="no weights"):
        llamita.load(tmp_path)


def test_the_embedded_model_is_named_cria(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llamita.checkpoint.load.files", lambda package: tmp_path / package)
    for name in (None, "cria"):
        with pytest.raises(NotFoundError, match="not in this installation"):
            llamita.load(name)
    (tmp_path / "llamita" / "cria").mkdir(parents=True)
    save_small_model(tmp_path / "llamita" / "cria")
    assert llamita.load().name == llamita.load("cria").name == "cria"


def test_names_of_dtypes_and_devices(small_path: Path) -> None:
    assert "bfloat16" in repr(llamita.load(small_path, dtype="bf16"))
    with pytest.raises(UsageError, match="dtype 'int3'"):
        llamita.load(small_path, dtype="int3")
    with pytest.raises(UsageError, match="device 'teapot'"):
        llamita.load(small_path, device="teapot")


def test_an_answer_goes_on_from_its_beginning(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    told = llm.chat(chat, continue_final_message=True, max_tokens=6, temperature=0.0)
    asked = "<|begin_of_text|>user: Hi<|eot_id|>assistant: Hel"
    assert llm.tokenizer.decode(told.prompt_token_ids, skip_special_tokens=False) == asked
    assert told == llm.generate(told.prompt_token_ids, max_tokens=6, temperature=0.0)


def test_a_stream_can_be_watched(llm: LLM) -> None:
    seen: list[int] = []
    stream = llm.stream("abc", max_tokens=6, temperature=0.0, watch=lambda logits, chosen: seen.append(int(chosen)))
    assert "".join(stream) == stream.completion.text
    assert seen == stream.completion.token_ids


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def guessed(small_path: Path) -> LLM:
    """The small model, guessing ahead by itself."""
    return llamita.load(small_path, draft=small_path)


@pytest.mark.parametrize("is_guessed", [False, True])
def test_an_answer_has_its_form_whatever_the_seed(llm: LLM, guessed: LLM, is_guessed: bool) -> None:
    writer = guessed if is_guessed else llm
    for answer in writer.generate(["a", "bc"] * 3, json_schema=PERSON, temperature=1.0, seed=list(range(6))):
        person = json.loads(answer.text)
        assert (type(person["name"]), type(person["age"]), answer.finish_reason) == (str, int, "stop")
    assert re.fullmatch("[ab]{3}-[0-9]", writer.generate("a", regex="[ab]{3}-[0-9]", temperature=1.0).text)
    assert writer.generate("a", choice=["Yes", "No"]).text in ("Yes", "No")
    assert writer.generate("a", grammar='start: "x" ("," "y")~2').text == "x,y,y"


def test_a_draft_changes_no_greedy_answer(llm: LLM, guessed: LLM) -> None:
    options: Any = {"max_tokens": 20, "temperature": 0.0, "repetition_penalty": 1.3}
    answers = guessed.generate(["abc", "d"], **options)
    assert answers == llm.generate(["abc", "d"], **options)
    assert answers[0].acceptance is not None and answers[0].acceptance.rate > 0.5
    assert guessed.generate("abc", json_schema=PERSON) == llm.generate("abc", json_schema=PERSON)


def test_logprobs_are_of_the_models_own_logits(llm: LLM) -> None:
    options: Any = {"max_tokens": 9, "temperature": 0.9, "top_k": 3}
    for answer in llm.generate(["abc", "d"], logprobs=2, seed=[1, 2], **options):
        assert answer.logprobs is not None
        ids = torch.tensor([answer.prompt_token_ids + answer.token_ids])
        with torch.no_grad():
            table = llm.model(ids).logits[0, len(answer.prompt_token_ids) - 1 : -1].log_softmax(-1)
        assert [likely.token_id for likely in answer.logprobs] == answer.token_ids
        assert [likely.logprob for likely in answer.logprobs] == pytest.approx(
            table.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0].tolist(), abs=1e-4
        )
        assert [[one.token_id for one in likely.top] for likely in answer.logprobs] == table.topk(2).indices.tolist()
    assert llm.generate("abc", seed=1, **options).logprobs is None
    assert llm.generate("abc", max_tokens=1, logprobs=0).logprobs == [
        llm.generate("abc", max_tokens=1, logprobs=1).logprobs[0]._replace(top=())
    ]


def test_logprobs_of_the_prompt(llm: LLM) -> None:
    prompts = ["abc", "a longer one"]
    answers = llm.generate(prompts, prompt_logprobs=2, max_tokens=3, temperature=0.0)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = answer.prompt_token_ids
        with torch.no_grad():
            table = llm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        assert answer.prompt_logprobs is not None and answer.logprobs is None
        assert "".join(likely.text for likely in answer.prompt_logprobs) == prompt
        expected = table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert [likely.logprob for likely in answer.prompt_logprobs] == pytest.approx(expected, abs=1e-4)
        tops = [[one.token_id for one in likely.top] for likely in answer.prompt_logprobs]
        assert tops == table.topk(2).indices.tolist()
    assert llm.generate([256], prompt_logprobs=0, max_tokens=1).prompt_logprobs == []
    read = llm.generate("Once upon", prompt_logprobs=2, max_tokens=1).prompt_logprobs
    for more in ({}, {"prompt_lookup_num_tokens": 2}, {"logprobs": 1}):
        alone = llm.generate("Once upon", prompt_logprobs=2, max_tokens=0, **more)
        for scored in (alone, *llm.generate(["Once upon"] * 2, prompt_logprobs=2, max_tokens=0, **more)):
            assert (scored.prompt_logprobs, scored.text, scored.finish_reason) == (read, "", "length")
    with pytest.raises(UsageError, match="prompt_logprobs is -1"):
        llm.generate("a", prompt_logprobs=-1)


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"days": {"enum": [1, 2]}}, "required": ["days"]}},
}


def test_tools_are_called(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ tools | tojson if tools }}{% for message in messages %}{{ message.content }}{% endfor %}"
    monkeypatch.setattr(llm.tokenizer, "chat_templates", {"default": template})
    question: Any = [{"role": "user", "content": "?"}]
    monkeypatch.setattr(TextModel, "context_length", 400)
    called = llm.chat(question, tools=[TOOL], grammar=tool_calls.grammar([TOOL]), temperature=1.0, seed=0)
    assert '"weather"' in llm.tokenizer.decode(called.prompt_token_ids)
    (call,) = called.tool_calls
    assert (call.name, call.arguments["days"] in (1, 2)) == ("weather", True)
    plain = llm.chat(question, max_tokens=4)
    assert plain.tool_calls == []
    assert "weather" not in llm.tokenizer.decode(plain.prompt_token_ids)


@pytest.fixture(scope="module")
def cria(cria_path: Path) -> LLM:
    """The embedded model, whose tokens are more than bytes."""
    return llamita.load(cria_path, dtype="float32")


def test_a_prefix_on_disk(llm: LLM, small_path: Path, tmp_path: Path) -> None:
    options: Any = {"max_tokens": 6, "temperature": 0.0}
    prefix = llm.new_prefix()
    with pytest.raises(UsageError, match="read nothing yet"):
        llm.save_prefix(tmp_path / "text", prefix)
    first = llm.stream("Once upon a time", prefix=prefix, **options)
    whole = "Once upon a time" + "".join(first)
    llm.save_prefix(tmp_path / "text", prefix)
    again = llamita.load(small_path)
    loaded = again.load_prefix(str(tmp_path / "text"))
    assert loaded.token_ids == prefix.token_ids[: loaded.cache.length]
    assert loaded.cache.length == len(first.completion.prompt_token_ids) + 5  # the last token was written, not read
    read: list[int] = []
    forward = again.model.forward

    def watched(**given: Any) -> Any:
        read.append(given["input_ids"].shape[1])
        return forward(**given)

    again.model.forward = watched
    stream = again.stream(whole + ".", prefix=loaded, **options)
    assert "".join(stream) == llm.generate(whole + ".", **options).text
    assert read == [2, 1, 1, 1, 1, 1]


def test_a_prefix_of_another_model_is_refused(llm: LLM, tmp_path: Path) -> None:
    prefix = llm.new_prefix()
    list(llm.stream("Once", prefix=prefix, max_tokens=2))
    llm.save_prefix(tmp_path / "text", prefix)
    save_small_model(tmp_path / "other", seed=1)
    with pytest.raises(
        UsageError, match=r"^the cache in .*text is of another model: read its text again with this one$"
    ):
        llamita.load(tmp_path / "other").load_prefix(tmp_path / "text")
    with pytest.raises(NotFoundError):
        llm.load_prefix(tmp_path / "nothing")
    saved.save(prefix.cache, tmp_path / "no_text", fingerprint=fingerprint(llm.model))
    with pytest.raises(BrokenFileError, match="is no prefix"):
        llm.load_prefix(tmp_path / "no_text")


def test_a_model_goes_to_other_processes(llm: LLM) -> None:
    assert llm.generate("hello", choice=["a", "b"], max_tokens=4).text in ("a", "b")  # with the tables of a grammar
    options: Any = {"max_tokens": 4, "temperature": 1.0, "seed": 3}
    written = llm.generate("hello", **options)
    assert pickle.loads(pickle.dumps(llm)).generate("hello", **options) == written
    assert pickle.loads(pickle.dumps(written)) == written


def test_a_broken_off_word_is_healed(cria: LLM) -> None:
    options: Any = {"max_tokens": 8, "temperature": 0.0, "heal": True}
    prompts = ["Once upon a ti", "The little girl went to the pa", 'He said: "Hel']
    together = cria.generate(prompts, **options)
    for prompt, answer in zip(prompts, together, strict=True):
        whole = cria.tokenizer.decode(answer.prompt_token_ids + answer.token_ids)
        assert whole.startswith(prompt)
        assert answer.text == whole[len(prompt) :]
        assert len(answer.prompt_token_ids) < len(cria.tokenizer.encode(prompt))
        stream = cria.stream(prompt, **options)
        assert ("".join(stream), stream.completion) == (answer.text, answer)
    stopped = cria.generate(prompts[0], stop="ti", **options)  # the prompt's own text is no stop text
    assert stopped.text == together[0].text.partition("ti")[0]
    chat: Any = [{"role": "user", "content": "Tell me a story."}]
    assert cria.chat(chat, max_tokens=8, temperature=0.0, heal=True) == cria.chat(chat, max_tokens=8, temperature=0.0)
