"""A receipt is enough to write an answer again, and says what differs where that fails."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llamita
from llamita.bench.replays import requests
from llamita.engine.limits import EngineLimits
from llamita.engine.receipt import ModelFacts, Receipt, differences, replay, tokens_digest
from llamita.errors import BrokenFileError
from llamita.generation.text_options import TextModel
from llamita.llm import LLM

SMALL = EngineLimits(max_num_seqs=5, max_num_batched_tokens=7, block_size=4, num_blocks=34)


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    """A model with kernels."""
    return llamita.load(small_path, dtype="bfloat16")


def texts_of(llm: LLM) -> TextModel:
    """Its texts, from a process that knows nothing of the engine."""
    return TextModel(llm.model, llm.tokenizer)


def written(llm: LLM, **options: Any) -> Receipt:
    """A receipt, through JSON."""
    with llm.engine() as engine:
        handle = engine.submit("Once upon", **options)
        handle.result(300)
        return Receipt.from_dict(json.loads(json.dumps(engine.receipt(handle).to_dict())))


def test_r1_every_receipt_of_a_busy_engine_replays_alone(llm: LLM) -> None:
    with llm.engine(SMALL) as engine:
        asked = requests(20, 5, longest=90, most=30)
        handles = [engine.submit(prompt, **options) for prompt, options in asked]
        for handle in handles:
            handle.result(300)
        receipts = [engine.receipt(handle) for handle in handles]
        assert engine.stats.preemptions > 0
    for handle, receipt in zip(handles, receipts, strict=True):
        receipt = Receipt.from_dict(json.loads(json.dumps(receipt.to_dict())))
        completion, again = replay(receipt, texts_of(llm), handle.prompt_token_ids)
        assert differences(receipt, again) == []
        assert completion == handle.result(0)


def test_an_unseeded_request_has_a_seed_in_its_receipt(llm: LLM) -> None:
    first, second = (written(llm, max_tokens=20, temperature=1.5) for _ in range(2))
    assert first.options["seed"] != second.options["seed"]
    assert first.tokens != second.tokens
    for one in (first, second):
        assert differences(one, replay(one, texts_of(llm), llm.tokenizer.encode("Once upon"))[1]) == []


def test_the_least_tokens_are_in_the_receipt_as_far_as_the_context_has_room(llm: LLM) -> None:
    for prompt, most in (("Once upon", 4), ("x" * 125, 2)):
        with llm.engine() as engine:
            handle = engine.submit(prompt, min_tokens=4, temperature=0.0, logit_bias={257: 100.0})
            handle.result(300)
            receipt = engine.receipt(handle)
        assert receipt.options["min_tokens"] == most
        _, again = replay(receipt, texts_of(llm), handle.prompt_token_ids)
        assert differences(receipt, again) == []


@pytest.mark.parametrize(
    "ending",
    [
        {"ignore_eos": True, "logit_bias": {257: 100.0}},
        {"stop_token_ids": [257, 97], "logit_bias": {97: 100.0}, "min_tokens": 3},
        {"stop": "a", "include_stop_str_in_output": True, "logit_bias": {97: 100.0}},
    ],
)
def test_what_ends_an_answer_is_in_its_receipt(llm: LLM, ending: Any) -> None:
    receipt = written(llm, max_tokens=7, temperature=0.0, **ending)
    assert {name: receipt.options[name] for name in ending.keys() - {"logit_bias", "stop"}}.items() <= ending.items()
    assert differences(receipt, replay(receipt, texts_of(llm), llm.tokenizer.encode("Once upon"))[1]) == []
    plain = Receipt(**{**vars(receipt), "options": {k: v for k, v in receipt.options.items() if k not in ending}})
    assert "options" in differences(receipt, replay(plain, texts_of(llm), llm.tokenizer.encode("Once upon"))[1])[0]


@pytest.mark.parametrize("most", [0, 2])
def test_a_prompt_s_log_probabilities_are_in_the_receipt(llm: LLM, most: int) -> None:
    receipt = written(llm, max_tokens=most, prompt_logprobs=1, logprobs=0)
    again = replay(receipt, texts_of(llm), llm.tokenizer.encode("Once upon"))[1]
    assert receipt.completion_tokens == most and differences(receipt, again) == []
    other = replace(receipt, prompt_logprobs="0")
    assert differences(other, again)[0].startswith("prompt_logprobs is 0 in the receipt")


def test_settings_of_the_checkpoint_are_in_the_receipt(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.model, "generation_config", {"do_sample": True, "temperature": 1.3, "top_k": 5})
    receipt = written(llm, max_tokens=12)
    assert (receipt.options["temperature"], receipt.options["top_k"]) == (1.3, 5)
    monkeypatch.setattr(llm.model, "generation_config", {})
    assert differences(receipt, replay(receipt, texts_of(llm), llm.tokenizer.encode("Once upon"))[1]) == []


def test_what_differs_is_named(llm: LLM, small_path: Path) -> None:
    receipt = written(llm, max_tokens=12, temperature=0.0)
    other = llamita.load(small_path, dtype="float32")
    found = differences(receipt, replay(receipt, texts_of(other), llm.tokenizer.encode("Once upon"))[1])
    assert [line.split()[0] for line in found][:2] == ["weights", "arithmetic"]
    found = differences(receipt, replay(receipt, texts_of(llm), llm.tokenizer.encode("Once"))[1])
    assert found[0].startswith("prompt is ")
    plain = llamita.load(small_path, dtype="bfloat16", kernels="off")
    assert "torch" in ModelFacts.of(texts_of(plain)).arithmetic


def test_other_end_tokens_are_named(llm: LLM, small_path: Path, tmp_path: Path) -> None:
    receipt, prompt = written(llm, max_tokens=12, temperature=0.0), llm.tokenizer.encode("Once upon")
    folder = shutil.copytree(small_path, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(256))}), encoding="utf-8")
    other = llamita.load(folder, dtype="bfloat16")
    found = [line.split()[0] for line in differences(receipt, replay(receipt, texts_of(other), prompt)[1])]
    assert found[:2] == ["end_tokens", "tokens"]
    older = replace(receipt, facts=replace(receipt.facts, end_tokens=None))  # of a version that did not note them
    assert differences(older, replay(older, texts_of(llm), prompt)[1]) == []


def test_facts_follow_every_number(llm: LLM, small_path: Path) -> None:
    same, other = (llamita.load(small_path, dtype="bfloat16") for _ in range(2))
    with torch.no_grad():
        other.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1
    mine, copied, changed = (ModelFacts.of(texts_of(one)) for one in (llm, same, other))
    assert mine == copied
    assert mine.weights != changed.weights
    assert mine.system_fingerprint != changed.system_fingerprint
    quantized = llamita.load(small_path, dtype="bfloat16", quantize="int8")
    assert len({ModelFacts.of(texts_of(one)).weights for one in (quantized, llm)}) == 2


def test_a_grammar_of_tools_is_kept(llm: LLM) -> None:
    from llamita.structured import grammar

    receipt = written(llm, max_tokens=12, grammar=grammar.regex("[a-f]+"), temperature=1.0, logit_bias={70: 2.0})
    assert differences(receipt, replay(receipt, texts_of(llm), llm.tokenizer.encode("Once upon"))[1]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"version": 9}, {"facts": {}}, {"tokens": None, "unknown": 1}, {"facts": 3}, {"options": 1.5}, {"options": "x"},
        {"prompt": None}, {"reads_on": "yes"}, {"logprobs": [1]},
    ],
)  # fmt: skip
def test_damaged_receipts(llm: LLM, change: dict[str, Any]) -> None:
    values = {**written(llm, max_tokens=1).to_dict(), **change}
    with pytest.raises(BrokenFileError):
        Receipt.from_dict(values)
    with pytest.raises(BrokenFileError):
        Receipt.from_dict([])


def test_damaged_facts(llm: LLM) -> None:
    values = written(llm, max_tokens=1).to_dict()
    with pytest.raises(BrokenFileError, match="arithmetic is 7"):
        Receipt.from_dict({**values, "facts": {**values["facts"], "arithmetic": 7}})


@pytest.mark.parametrize("options", [{"logit_bias": {"x": 1}}, {"logit_bias": [1]}, {"grammar": {"lark": "a"}}])
def test_damaged_options(llm: LLM, options: dict[str, Any]) -> None:
    receipt = Receipt.from_dict({**written(llm, max_tokens=1).to_dict(), "options": options})
    with pytest.raises(BrokenFileError, match="the options of the receipt are damaged"):
        replay(receipt, texts_of(llm), llm.tokenizer.encode("Once upon"))


def test_digests_of_tokens() -> None:
    assert tokens_digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tokens_digest([1, 2]) != tokens_digest([2, 1])
