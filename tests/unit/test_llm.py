"""Text in, text out: one prompt or several, streamed or whole, chats, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.errors import BrokenFileError, NotFoundError, UsageError
from llamita.llm import LLM
from tests.small import CONFIG, save_small_model


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


def test_the_context_ends_a_text(llm: LLM) -> None:
    long = llm.generate("x" * 100, temperature=0.0)
    assert long.usage.total_tokens == CONFIG.max_position_embeddings
    assert long.finish_reason == "length"


def test_chats(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|eot_id|>Hello"}]
    answer = llm.chat(messages, max_tokens=8, temperature=0.0)
    assert answer.prompt_token_ids.count(258) == 2  # the template's, not the user's
    assert "".join(llm.stream_chat(messages, max_tokens=8, temperature=0.0)) == answer.text


def test_a_prefix_changes_the_work_and_not_the_text(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
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


def test_a_prefix_survives_an_interruption(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("a", {"temperature": -1}, "temperature"),
        ("a", {"top_p": 2, "seed": 1}, "top_p"),
        ("a", {"stop": ""}, "empty"),
        ("a", {"max_token": 3}, "'max_tokens'"),
        (["a", "b"], {"temperature": 1.0, "seed": [1]}, "seed"),
    ],
    ids=str,
)
def test_wrong_input(llm: LLM, prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.generate(prompt, **options)


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
