"""The configuration: its defaults, files of any age, and one sentence for everything that would fail later."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamita import LlamaConfig, LlamaRotaryEmbedding, RopeConfig
from llamita.errors import BrokenFileError, NotFoundError, UnsupportedError, UsageError
from llamita.model.rope import frequencies

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
HALF = SMALL["hidden_size"] // SMALL["num_attention_heads"] // 2
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16, "mscale": 0.7},
    "yarn untruncated": {"factor": 4.0, "original_max_position_embeddings": 16, "truncate": False},
    "yarn, two mscales": {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.5},
    "longrope": {**LONG, "original_max_position_embeddings": 16},
    "longrope with factor": {**LONG, "original_max_position_embeddings": 16, "factor": 3.0},
    "llama3": LLAMA_3,
    "proportional": {"partial_rotary_factor": 0.5, "factor": 2.0},
}


def rope(case: str) -> dict[str, Any]:
    return {"rope_type": case.split(",")[0].split(" ")[0], "rope_theta": 5000.0, **ROPES[case]}


def test_defaults_are_transformers() -> None:
    ours, theirs = LlamaConfig(), transformers.LlamaConfig()
    for name, value in ours.to_dict().items():
        if name in ("rope_theta", "rope_scaling", "torch_dtype", "id2label", "label2id"):
            continue
        assert getattr(theirs, name) == value, name
    assert ours.id2label == theirs.id2label
    assert ours.num_labels == theirs.num_labels


@pytest.mark.parametrize("case", ROPES)
def test_a_file_of_ours_means_the_same_to_transformers(case: str, tmp_path: Path) -> None:
    ours = LlamaConfig(
        **SMALL, rope_parameters=RopeConfig.from_dict(rope(case)), eos_token_id=[3, 4], pad_token_id=1, num_labels=3
    )
    ours.save_pretrained(tmp_path)
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    for name in SMALL:
        assert getattr(theirs, name) == getattr(ours, name)
    assert theirs.eos_token_id == [3, 4]
    assert theirs.num_labels == 3
    _same_rotation(ours, theirs)
    again = LlamaConfig.from_pretrained(tmp_path)
    assert again == ours
    assert again.to_dict() == ours.to_dict()


@pytest.mark.parametrize("case", ROPES)
def test_a_file_of_transformers_means_the_same_to_us(case: str, tmp_path: Path) -> None:
    theirs = transformers.LlamaConfig(**SMALL, rope_parameters=rope(case), attention_bias=True)
    theirs.save_pretrained(tmp_path)
    ours = LlamaConfig.from_pretrained(tmp_path)
    assert ours.attention_bias
    _same_rotation(ours, theirs)


def _same_rotation(ours: LlamaConfig, theirs: Any) -> None:
    peer = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    inv_freq, factor = frequencies(ours)
    assert torch.equal(inv_freq, peer.inv_freq)
    assert factor == peer.attention_scaling
    module = LlamaRotaryEmbedding(ours)
    for length in (5, SMALL["max_position_embeddings"] + 9):  # beyond every switch length, too
        positions = torch.arange(length)[None]
        cos, sin = peer(torch.empty(1), positions)
        turned = module(positions, torch.float32)
        assert torch.equal(turned.cos[:, :, 0], cos)
        assert torch.equal(turned.sin[:, :, 0], sin)


@pytest.mark.parametrize(
    ("old", "kind", "values"),
    [
        ({"rope_theta": 5e5}, "default", {"rope_theta": 5e5}),
        ({"rope_theta": 5e5, "rope_scaling": None}, "default", {"rope_theta": 5e5}),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "linear", {"factor": 4, "rope_theta": 1e4}),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.5}}, "dynamic", {"factor": 2.5}),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA_3}, "rope_theta": 5e5}, "llama3", {"rope_theta": 5e5}),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}}, "linear", {"factor": 4}),
        ({"rope_scaling": {"type": "su", **LONG}}, "longrope", {"original_max_position_embeddings": 64}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "default", {"rope_theta": 7.0}),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 7.0}, "default", {"rope_theta": 7.0}),
    ],
)
def test_old_spellings_are_read(old: dict[str, Any], kind: str, values: dict[str, Any]) -> None:
    config = LlamaConfig.from_dict(SMALL | old)
    assert config.rope_parameters.rope_type == kind
    for name, value in values.items():
        assert config.rope_parameters[name] == value
    assert LlamaConfig.from_dict(config.to_dict()) == config


def test_old_readers_find_their_keys() -> None:
    linear = LlamaConfig(**SMALL, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0}).to_dict()
    assert linear["rope_theta"] == 5e5
    assert linear["rope_scaling"] == {"type": "linear", "factor": 4.0}  # the oldest accept exactly these two
    assert linear["rope_parameters"] == {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
    assert LlamaConfig(**SMALL).to_dict()["rope_scaling"] is None
    llama3 = LlamaConfig(**SMALL, rope_scaling={"rope_type": "llama3", **LLAMA_3}).to_dict()
    assert llama3["rope_scaling"] == {"rope_type": "llama3", **LLAMA_3}
    assert LlamaConfig(**SMALL, dtype="bfloat16").to_dict()["torch_dtype"] == "bfloat16"


def test_unknown_keys_are_kept_readable_and_written_back(tmp_path: Path) -> None:
    config = LlamaConfig.from_dict({**SMALL, "auto_map": {"A": "b"}, "transformers_version": "4.30", "use_mtp": True})
    assert config.auto_map == {"A": "b"}
    assert config.use_mtp is True
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {"A": "b"}
    with pytest.raises(AttributeError, match=r"^LlamaConfig has no field 'absent'$"):
        _ = config.absent


def test_dtype_is_read_under_both_names() -> None:
    assert LlamaConfig.from_dict(SMALL | {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
    assert LlamaConfig.from_dict(SMALL | {"dtype": "torch.float16"}).dtype == "float16"
    assert LlamaConfig.from_dict(SMALL | {"dtype": "float32", "torch_dtype": "float16"}).dtype == "float32"
    assert LlamaConfig.from_dict(SMALL).dtype is None


def test_derived_and_null_fields() -> None:
    config = LlamaConfig.from_dict(SMALL | {"num_key_value_heads": None, "head_dim": None, "hidden_act": None})
    assert (config.num_key_value_heads, config.head_dim, config.hidden_act) == (3, 8, "silu")
    assert LlamaConfig.from_dict(SMALL | {"eos_token_id": None}).eos_token_ids == ()
    assert LlamaConfig.from_dict(SMALL | {"eos_token_id": 5}).eos_token_ids == (5,)
    assert LlamaConfig.from_dict(SMALL | {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
    assert LlamaConfig(**SMALL, head_dim=10).head_dim == 10
    assert LlamaConfig(**SMALL, attn_implementation="flex_attention").attn_implementation == "flex"


def test_labels() -> None:
    named = LlamaConfig.from_dict(SMALL | {"id2label": {"0": "no", "1": "yes", "2": "so"}, "num_labels": 7})
    assert named.id2label == {0: "no", 1: "yes", 2: "so"}
    assert named.to_dict()["label2id"] == {"no": 0, "yes": 1, "so": 2}
    assert named.replace(vocab_size=60).id2label == named.id2label
    assert named.replace(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert named.replace(id2label={0: "one"}).num_labels == 1
    assert LlamaConfig.from_dict(SMALL | {"num_labels": 5}).num_labels == 5
    assert LlamaConfig(**SMALL, num_labels=1).num_labels == 1


def test_replace_validates_again_and_keeps_the_rest() -> None:
    config = LlamaConfig(**SMALL, rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=5e5)
    assert config.replace(vocab_size=60).rope_parameters == config.rope_parameters
    assert config.replace(rope_theta=7.0).rope_parameters == RopeConfig(rope_type="linear", rope_theta=7.0, factor=4.0)
    other = config.replace(rope_scaling={"type": "dynamic", "factor": 2.0}).rope_parameters
    assert (other.rope_type, other.rope_theta, other.factor) == ("dynamic", 5e5, 2.0)
    assert config.replace(rope_parameters=RopeConfig()).rope_theta == 10000.0
    with pytest.raises(UsageError, match=r"^vocab_size is 0"):
        config.replace(vocab_size=0)


def test_a_config_is_frozen_and_can_be_copied() -> None:
    config = LlamaConfig.from_dict({**SMALL, "auto_map": {}})
    with pytest.raises(AttributeError):
        config.vocab_size = 1  # type: ignore[misc]
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert twin.auto_map == {}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5: change one of them or"),
    ({"num_key_value_heads": 2}, "num_attention_heads 3 is not a multiple of num_key_value_heads 2: every key/value"),
    ({"head_dim": 7}, "head_dim is 7: rotary positions turn pairs, so it must be even"),
    ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}}, "head_dim is 2: the 'dynamic' rope_type needs"),
    ({"vocab_size": 0}, "vocab_size is 0: it must be a whole number of at least 1"),
    ({"vocab_size": True}, "vocab_size is True: it must be a whole number"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5: it must be a whole number"),
    ({"hidden_size": "24"}, "hidden_size is '24': it must be a whole number"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0: it must be a whole number"),
    ({"sliding_window": 0}, "sliding_window is 0: it must be a whole number"),
    ({"max_position_embeddings": -1}, "max_position_embeddings is -1: it must be"),
    ({"pad_token_id": 50}, "pad_token_id is 50, outside the vocabulary of 50 tokens"),
    ({"bos_token_id": -2}, "bos_token_id is -2, outside the vocabulary"),
    ({"eos_token_id": [1, 99]}, "eos_token_id is 99, outside the vocabulary"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0: a row of zeros would be divided by zero"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06: it must be a number from 0 to 1"),
    ({"initializer_range": 2}, "initializer_range is 2: it must be a number from"),
    ({"attention_dropout": "0.1"}, "attention_dropout is '0.1': it must be a number from"),
    ({"num_labels": 0}, "num_labels is 0: it must be a whole number of at least 1"),
    ({"num_labels": "3"}, "num_labels is '3': it must be a whole number"),
    ({"id2label": ["no", "yes"]}, "id2label is ['no', 'yes']: it must name each class by its number"),
    ({"eos_token_id": "2"}, "eos_token_id is '2': it must be the number of a token"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false': it must be true or false"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear': it must be an object of keys and values"),
    ({"rope_scaling": {"type": ["linear"], "factor": 2}}, "rope type is ['linear']: it must be one of default"),
    ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "rope factor is inf: it must be above 0"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "rope truncate is 1: it must be true or false"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1}, "rope_theta is 1: the 'yarn' rope_type needs"),
    ({"rope_theta": 0}, "rope rope_theta is 0: it must be above 0"),
    ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs the key 'factor': add it to rope_parameters"),
    ({"rope_scaling": {"type": "spiral", "factor": 2}}, "rope_type 'spiral' is unknown: use one of default, linear"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope factor is 0.5: it stretches the context, so it must"),
    ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope factor is '4': it must be above 0"),
    ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, "rope keys 'type' and 'rope_type'"),
    (
        {"rope_scaling": {"type": "longrope", **LONG, "short_factor": [1.0]}},
        "rope short_factor has 1 numbers, head_dim",
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA_3, "high_freq_factor": 1.0}},
        "high_freq_factor 1.0 must be above",
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "rope_scaling contradicts rope_parameters: give one of them",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_what_would_fail_later_is_one_sentence_now(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        LlamaConfig.from_dict(SMALL | changes)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh' is not supported: use one of silu, swish"),
        ({"problem_type": "clustering"}, "problem_type 'clustering' is not supported: use one of None, regression"),
        ({"model_type": "bert"}, "model_type 'bert' is not supported: use one of llama"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported: use one of None, float64"),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "rope_parameters per layer type (full_attention, sliding_attention) are not part of Llama",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor goes with rope_type 'proportional', not 'linear'",
        ),
    ],
)
def test_what_this_build_does_not_do_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        LlamaConfig.from_dict(SMALL | changes)
    assert str(raised.value).startswith(sentence)
    for choice in ("attn_implementation", "numerics"):
        with pytest.raises(UnsupportedError, match=f"^{choice} 'other' is not supported"):
            LlamaConfig(**SMALL, **{choice: "other"})


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (None, NotFoundError, "has no config.json: give the folder of a Hugging Face checkpoint"),
        (b"{", BrokenFileError, "config.json is not valid JSON"),
        (b"\xff\xfe", BrokenFileError, "config.json is not valid JSON"),
        (b"[1]", BrokenFileError, "config.json holds a list, not a JSON object: fetch it again"),
    ],
)
def test_files_that_are_no_config(content: bytes | None, error: type, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=sentence):
        LlamaConfig.from_pretrained(tmp_path)


def test_reading_may_change_fields(tmp_path: Path) -> None:
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    with pytest.raises(BrokenFileError, match=r"config\.json is a folder, not a file"):
        LlamaConfig.from_pretrained(tmp_path / "folder")
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors on Windows write it
    assert LlamaConfig.from_pretrained(tmp_path, use_cache=False).use_cache is False


def test_a_few_digits_cannot_ask_for_all_of_the_memory() -> None:
    for changes, sentence in (
        ({"num_labels": 2**40}, "num_labels is 1099511627776: it must be at most 1000000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000: it must be at most 10000"),
        ({"vocab_size": 2**63}, "vocab_size is 9223372036854775808: it must be at most 2147483647"),
        ({"vocab_size": 2**30, "hidden_size": 2**20}, "the largest matrix, 1073741824 rows of 1048576, is"),
    ):
        with pytest.raises(UsageError, match=sentence):
            LlamaConfig(**changes)
