"""Rotary keys as published files have them: read as transformers reads them, kept whole, and a mapping."""

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamita.config import LlamaConfig, RopeConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model.rope import frequencies

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 4.0, 5.0]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# What files on the hub say, and the keys of it that have no effect.
PUBLISHED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "yarn-llama-2": ({"rope_scaling": {**YARN, "finetuned": True}}, {"finetuned"}),
    "yarn, new spelling": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **YARN, "finetuned": True}},
        {"finetuned"},
    ),
    "yarn, both spellings": ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}}, set()),
    "yarn, attention factor": ({"rope_scaling": {**YARN, "attention_factor": 0.9, "spin": 2.0}}, {"spin"}),
    "yarn, deepseek": (
        {"rope_scaling": {**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7}},
        set(),
    ),
    "yarn, mscale of 0": ({"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0}}, set()),
    "yarn, factor null": ({"rope_scaling": {**YARN, "factor": None}}, set()),
    "yarn, length by its side": ({"rope_scaling": YARN, "original_max_position_embeddings": 32}, set()),
    "qwen-2.5-vl": (
        {"rope_theta": 1e6, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}},
        {"mrope_section"},
    ),
    "phi-3.5": (
        {
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "type": "longrope", "short_factor": SHORT, "long_factor": LONG, "short_mscale": 1.2, "long_mscale": 1.2,
            },
        },
        {"short_mscale", "long_mscale"},
    ),
    "phi-4-mini": (
        {
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
        set(),
    ),
    "longrope, attention factor": (
        {
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 4.0,
                "original_max_position_embeddings": 16, "attention_factor": 1.2,
            }
        },
        set(),
    ),
    "llama-3.1": ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA_3}}, set()),
    "llama-3.1, whole heads": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA_3, "partial_rotary_factor": 1.0}},
        set(),
    ),
    "linear of transformers 4": ({"rope_scaling": {"type": "linear", "factor": 4}}, set()),
    "linear with more": (
        {"rope_scaling": {"type": "linear", "factor": 4.0, "attention_factor": 2.0, "beta_fast": 32}},
        {"attention_factor", "beta_fast"},
    ),
    "dynamic, length": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}},
        {"original_max_position_embeddings"},
    ),
    "dynamic, hunyuan": ({"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}}, {"alpha"}),
    "default, half heads": ({"rope_theta": 5e3, "partial_rotary_factor": 0.5}, {"partial_rotary_factor"}),
    "default, factor": ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "factor": 2.0}}, {"factor"}),
    "an object under a key of its own": (
        {"rope_parameters": {"rope_theta": 7.0, "made": {"by": "hand"}}},
        {"made"},
    ),
    "proportional": (
        {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "proportional", "rope_theta": 7.0}},
        set(),
    ),
}  # fmt: skip


def read(values: dict[str, Any]) -> tuple[LlamaConfig, list[str]]:
    """A config, and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = LlamaConfig.from_dict(SMALL | copy.deepcopy(values))
    return config, [str(warning.message) for warning in said]


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_keys_turn_as_in_transformers_and_are_kept(case: str, tmp_path: Path) -> None:
    values, idle = PUBLISHED[case]
    config, said = read(values)
    assert len(said) == bool(idle), said
    assert all(repr(name) in said[0] for name in idle)
    assert set(config.rope_parameters.unused) == idle
    theirs = transformers.LlamaConfig(**SMALL, **copy.deepcopy(values))
    peer = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    inv_freq, factor = frequencies(config)
    assert torch.equal(inv_freq, peer.inv_freq)
    assert factor == peer.attention_scaling
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    for name in idle & given.keys():
        assert config.to_dict()["rope_parameters"][name] == given[name]
    # A changed copy says nothing anew and keeps them, and so does a file.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = config.replace(vocab_size=60)
        other.save_pretrained(tmp_path)
    assert other.rope_parameters == config.rope_parameters
    again, said_again = read(json.loads((tmp_path / "config.json").read_text()))
    assert again.rope_parameters == config.rope_parameters
    assert again.to_dict() == other.replace(vocab_size=50).to_dict() | {"vocab_size": again.vocab_size}
    assert said_again == said


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", "llama3"])
@pytest.mark.parametrize("beside", [False, True])
def test_heads_that_turn_in_part_are_one_sentence(kind: str, beside: bool) -> None:
    needed = {**LLAMA_3, "short_factor": SHORT, "long_factor": LONG, "rope_type": kind}
    inside = {} if beside else {"partial_rotary_factor": 0.5}
    outside = {"partial_rotary_factor": 0.5} if beside else {}
    with pytest.raises(
        UnsupportedError, match=f"^partial_rotary_factor goes with rope_type 'proportional', not '{kind}'"
    ):
        LlamaConfig.from_dict({**SMALL, **outside, "rope_parameters": needed | inside})


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 6.0, "rope_parameters": {"rope_theta": 5.0}},
        {"rope_theta": 6.0, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5.0}},
        {"rope_theta": 6.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}},
    ],
)
def test_of_two_bases_the_inner_one_wins_and_it_is_said_once(values: dict[str, Any]) -> None:
    config, said = read(values)
    assert said == ["rope_theta is 6.0, and that of rope_parameters 5.0: the latter is used"]
    assert config.rope_theta == transformers.LlamaConfig(**SMALL, **values).rope_parameters["rope_theta"] == 5.0


def test_rope_parameters_are_a_mapping() -> None:
    ours = LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
    ).rope_parameters
    theirs = transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
    ).rope_parameters
    assert dict(ours) == theirs == ours
    assert ours == dict(theirs)
    assert ours != {"rope_type": "linear"}
    assert ours == RopeConfig(rope_type="linear", rope_theta=5e5, factor=4.0)
    assert "rope_theta" in ours
    assert "beta_fast" not in ours
    assert (ours["factor"], ours.get("factor"), ours.get("beta_fast"), ours.get("beta_fast", 3)) == (4.0, 4.0, None, 3)
    assert set(ours.keys()) == set(theirs)
    assert sorted(ours.items()) == sorted(theirs.items())
    assert {**ours} == theirs
    assert json.loads(json.dumps(ours)) == theirs
    with pytest.raises(KeyError):
        ours["beta_fast"]
    for twin in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin == ours
        assert twin.factor == 4.0


def test_rope_parameters_cannot_be_changed_in_place() -> None:
    rope = RopeConfig(factor=4.0)
    for change in (
        lambda: rope.update(factor=2.0),
        lambda: rope.__setitem__("factor", 2.0),
        lambda: rope.__delitem__("factor"),
        lambda: rope.pop("factor"),
        lambda: rope.setdefault("a", 1),
        lambda: rope.clear(),
    ):
        with pytest.raises(UsageError, match=r"^rope_parameters cannot be changed in place: config\.replace"):
            change()
    assert rope == {"rope_type": "default", "rope_theta": 10000.0, "factor": 4.0}
