"""Files whose values no reader expects: one short sentence for each, and never "not foreseen"."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FLAGS, Run

LONG = "x" * 100_000
DIGITS = "9" * 5000
TEXTS = ["[" * 100_000, '{"a":' * 100_000, f'{{"vocab_size": {DIGITS}}}', '{"a": "\\ud800"}', "null", "3", '"a"', ""]
HUGE: list[Any] = [2**31, 2**63, 2**64, 10**300, 10**400]
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")  # fmt: skip
VALUES: Mapping[str, list[Mapping[str, Any]]] = {
    "config.json": [
        *({name: value} for name in COUNTS for value in HUGE),
        {"id2label": {DIGITS: "a"}},
        {"rope_theta": 10**400, "rope_parameters": None},
        {"rope_parameters": {"rope_type": "linear", "factor": 10**400}},
        {"rope_parameters": {"rope_type": LONG}},
        {"rope_parameters": LONG},
        {"rms_norm_eps": 10**300},
        {"rms_norm_eps": LONG},
        {"bos_token_id": 10**300},
        {"eos_token_id": [1, 10**300]},
        {"hidden_act": LONG},
        {"hidden_act": [LONG]},
        {"model_type": LONG},
        {"dtype": LONG},
        {"quantization_config": {"quant_method": LONG}},
        {"tie_word_embeddings": LONG},
        {"bos_token_id": LONG},
    ],
    "tokenizer_config.json": [
        {"bos_token": "\ud800"},
        {"added_tokens_decoder": {"260": {"content": "\ud800"}}},
        {"added_tokens_decoder": {DIGITS: {"content": "a"}}},
        {"added_tokens_decoder": {str(10**40): {"content": LONG}}},
        {"added_tokens_decoder": {"260": {"content": 5}}},
        {"added_tokens_decoder": {"260": {"content": "new", "special": LONG}}},
        {"added_tokens_decoder": {"260": {}}},
        {"chat_template": 10**400},
    ],
    "generation_config.json": [
        {"eos_token_id": 10**300},
        {"top_k": 10**400, "do_sample": True},
        {"temperature": 10**400, "do_sample": True},
        {"top_p": 10**400, "do_sample": True},
        {"repetition_penalty": -(10**400)},
        {"eos_token_id": [2**31]},
        {"bos_token_id": 2**63},
        {"pad_token_id": 2**63},
    ],
}


def sentence(outcome: Any) -> str:
    """The one short sentence that a failure is."""
    assert outcome.code in (1, 2, 3, 6), outcome.err[:300]
    assert outcome.out == ""
    assert outcome.err.startswith("llamita: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 500, outcome.err[:1000]
    assert "not foreseen" not in outcome.err
    return outcome.err


@pytest.fixture
def checkpoint(small_path: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be damaged."""
    return shutil.copytree(small_path, tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_texts_that_are_no_object(name: str, checkpoint: Path, run: Run) -> None:
    for text in TEXTS:
        (checkpoint / name).write_text(text, "utf-8")
        assert name in sentence(run("generate", "a", "-m", str(checkpoint), *FLAGS))


@pytest.mark.parametrize("name", VALUES)
def test_values_that_nobody_writes(name: str, checkpoint: Path, run: Run) -> None:
    good = (checkpoint / name).read_text("utf-8")
    for changes in VALUES[name]:
        (checkpoint / name).write_text(json.dumps(json.loads(good) | changes), "utf-8")
        outcome = run("generate", "a", "-m", str(checkpoint), *FLAGS)
        assert outcome.code, str(changes)[:100]
        sentence(outcome)


def test_a_lone_surrogate_in_the_vocabulary(checkpoint: Path, run: Run) -> None:
    path = checkpoint / "tokenizer.json"
    good = path.read_text("utf-8")
    path.write_text(good.replace('"<|pad|>"', '"\\ud800"'), "utf-8")
    assert "tokenizer.json" in sentence(run("generate", "a", "-m", str(checkpoint), *FLAGS))


def test_long_names_in_the_weights(checkpoint: Path, run: Run) -> None:
    path = checkpoint / "model.safetensors"
    for header in ({LONG: {"dtype": LONG, "shape": [1], "data_offsets": [0, 4]}}, {LONG: [10**400]}, {LONG: 1},
                   {"a": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 10**400]}},
                   {"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}):  # fmt: skip
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
        assert "model.safetensors" in sentence(run("generate", "a", "-m", str(checkpoint), *FLAGS))


def test_long_names_in_an_index(checkpoint: Path, run: Run) -> None:
    index = checkpoint / "model.safetensors.index.json"
    (checkpoint / "model.safetensors").unlink()
    for weight_map in ({"a": LONG}, {LONG: "../x.safetensors"}, {"a": f"{LONG}.safetensors"}, {"a": 10**400}):
        index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
        assert "index.json" in sentence(run("generate", "a", "-m", str(checkpoint), *FLAGS))
