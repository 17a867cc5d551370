"""A config as transformers' users handle it: as text, as a file, by other names, and by assignment."""

import copy
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamita.config import LlamaConfig
from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UnsupportedError, UsageError

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
}  # fmt: skip


def test_a_config_is_text_and_a_file_and_back(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL, rope_theta=5e5, eos_token_id=[3, 4], dtype="bfloat16", num_labels=3)
    assert json.loads(config.to_json_string(use_diff=False)) == config.to_dict()
    assert json.loads(config.to_json_string()) == config.to_diff_dict()
    assert LlamaConfig.from_dict(config.to_diff_dict()) == config
    assert config.to_diff_dict()["model_type"] == "llama"
    assert config.to_diff_dict().keys() < config.to_dict().keys()
    for use_diff in (True, False):
        config.to_json_file(tmp_path / "any.json", use_diff=use_diff)
        assert LlamaConfig.from_json_file(tmp_path / "any.json") == config
    config.to_json_file(tmp_path / "config.json")
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    assert theirs.eos_token_id == [3, 4]
    assert theirs.rope_parameters["rope_theta"] == 5e5
    assert config.get_text_config() is config.get_text_config(decoder=True) is config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.json", "config.json"]
    with pytest.raises(NotFoundError, match=r"^there is no file .*absent\.json: give the folder"):
        LlamaConfig.from_json_file(tmp_path / "absent.json")
    (tmp_path / "any.json").write_text("[]")
    with pytest.raises(BrokenFileError, match="holds a list, not a JSON object"):
        LlamaConfig.from_json_file(tmp_path / "any.json")
    with pytest.raises(UnsupportedError, match=r"^llamita uploads nothing: save to a folder, then `hf upload"):
        config.save_pretrained(tmp_path, push_to_hub=True)


def test_what_every_config_of_transformers_answers() -> None:
    ours, theirs = LlamaConfig(**SMALL), transformers.LlamaConfig(**SMALL)
    for name in (
        "is_encoder_decoder", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
        "architectures", "name_or_path", "keys_to_ignore_at_inference", "num_labels", "id2label", "label2id",
        "problem_type", "model_type", "torch_dtype",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert LlamaConfig(**SMALL, dtype=torch.bfloat16).torch_dtype == "bfloat16"
    assert ours._attn_implementation == "sdpa"
    assert not hasattr(ours, "prefix")
    assert not {"return_dict", "is_encoder_decoder"} & ours.to_dict().keys()


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"num_labels": 3}])
def test_a_config_is_made_of_its_own_keys(changes: dict[str, Any]) -> None:
    config = LlamaConfig.from_dict({**SMALL, **changes, "dtype": "bfloat16", "auto_map": {"a": "b"}})
    assert LlamaConfig(**config.to_dict()) == config
    theirs = transformers.LlamaConfig(**SMALL, **copy.deepcopy(changes), bos_token_id=7)
    assert LlamaConfig(**theirs.to_dict()) == LlamaConfig.from_dict(theirs.to_dict())
    assert transformers.LlamaConfig(**config.to_dict()).hidden_size == 24
    assert LlamaConfig(**SMALL, torch_dtype=torch.float16, _attn_implementation="eager") == LlamaConfig(
        **SMALL, dtype="float16", attn_implementation="eager"
    )
    assert LlamaConfig(**SMALL, torch_dtype="float16", dtype="float32").dtype == "float32"
    assert LlamaConfig(**SMALL, label2id={"a": 0}, return_dict=False).extra == {"return_dict": False}
    assert LlamaConfig(**SMALL, label2id={"a": 0}).id2label == {0: "a"}
    with pytest.raises(UsageError, match=r"^LlamaConfig has no field 'hiden_size': did you mean 'hidden_size'\?$"):
        LlamaConfig(hiden_size=8)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"^LlamaConfig has no field 'qqq': LlamaConfig.from_dict takes any key$"):
        LlamaConfig(qqq=8)  # type: ignore[call-arg]


def test_labels_have_three_spellings() -> None:
    config, names = LlamaConfig(**SMALL), {0: "no", 1: "yes", 2: "so"}
    numbers = {"no": 0, "yes": 1, "so": 2}
    for changes in (
        {"id2label": names},
        {"label2id": numbers},
        {"id2label": names, "label2id": numbers},
        {"id2label": {"0": "no", "1": "yes", "2": "so"}, "num_labels": 3},
    ):
        assert config.replace(**changes).id2label == names
        assert LlamaConfig.from_dict(SMALL, **changes).label2id == numbers
    assert LlamaConfig(**SMALL, id2label={"0": "a"}).id2label == {0: "a"}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match=r"^num_labels is 2, and id2label names 3: give one of them"):
        config.replace(id2label=names, num_labels=2)


def test_changed_copies_know_the_names() -> None:
    config = LlamaConfig.from_dict({**SMALL, "auto_map": {"a": "b"}})
    assert config.replace(torch_dtype=torch.float16).dtype == "float16"
    assert config.replace(auto_map={}).auto_map == {}
    assert config.replace(output_hidden_states=True).extra["output_hidden_states"] is True
    with pytest.raises(UsageError, match=r"^LlamaConfig has no field 'hiden_size': did you mean 'hidden_size'\?$"):
        config.replace(hiden_size=8)
    with pytest.raises(UsageError, match=r"^LlamaConfig has no field 'qqq'$"):
        LlamaConfig.from_dict(SMALL, qqq=8)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("use_cache", False, False),
        ("pretraining_tp", 1, 1),
        ("pad_token_id", 3, 3),
        ("bos_token_id", 4, 4),
        ("eos_token_id", (5, 6), [5, 6]),
        ("eos_token_id", 7, 7),
        ("problem_type", "regression", "regression"),
        ("tie_word_embeddings", True, True),
        ("return_dict", False, False),
        ("_name_or_path", "org/name", "org/name"),
        ("auto_map", 1, 1),
    ],
)
def test_what_trainers_assign_may_be_assigned(name: str, value: Any, kept: Any) -> None:
    config = LlamaConfig.from_dict({**SMALL, "auto_map": {}})
    before = copy.deepcopy(config)
    setattr(config, name, value)
    assert getattr(config, name) == kept
    assert LlamaConfig.from_dict(config.to_dict()) == config
    config.update({name: getattr(before, name)})
    assert getattr(config, name) == getattr(before, name)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("hidden_size", 8, r"^hidden_size is a fact that models are built by: config\.replace\(hidden_size=\.\.\.\)"),
        ("rope_theta", 8.0, r"^rope_theta is a fact that models are built by"),
        ("torch_dtype", "float16", r"^dtype is a fact that models are built by"),
        ("use_cahce", True, r"^LlamaConfig has no field 'use_cahce': did you mean 'use_cache'\?"),
    ],
)
def test_facts_of_the_weights_may_not(name: str, value: Any, sentence: str) -> None:
    config = LlamaConfig(**SMALL)
    with pytest.raises(FrozenInstanceError, match=sentence):
        setattr(config, name, value)
    assert config == LlamaConfig(**SMALL)


def test_what_is_assigned_is_checked() -> None:
    config = LlamaConfig(**SMALL)
    for name, value in (("pad_token_id", 99), ("use_cache", "no"), ("problem_type", "odd")):
        with pytest.raises(LlamitaError, match=f"^{name}"):
            setattr(config, name, value)
    assert config == LlamaConfig(**SMALL)


def test_a_folder_of_transformers_trainer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(
        NotFoundError, match=r"has no config\.json: transformers' Trainer writes none .*trainable\(model\)"
    ):
        LlamaConfig.from_pretrained(tmp_path)
