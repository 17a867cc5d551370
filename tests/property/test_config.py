"""No config.json, however odd, does anything but become a config or one sentence."""

import json
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamita import LlamaConfig, RopeConfig
from llamita.errors import LlamitaError
from llamita.model.rope import frequencies

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3}
SCALARS = st.none() | st.booleans() | st.integers(-3, 130) | st.floats() | st.sampled_from(["", "silu", "4", "yarn"])
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=5) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=5
)
ROPE_KEYS = [item.name for item in fields(RopeConfig)] + ["type"]
KINDS = st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "su", "odd"])
ROPES = st.dictionaries(st.sampled_from(ROPE_KEYS), VALUES, max_size=6) | st.fixed_dictionaries(
    {"rope_type": KINDS, "factor": VALUES, "short_factor": VALUES, "long_factor": VALUES},
    optional={name: VALUES for name in ROPE_KEYS[3:] if "factor" not in name},
)
KEYS = sorted({*LlamaConfig().to_dict(), "num_labels", "unknown", "original_max_position_embeddings"})
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)


@pytest.mark.filterwarnings("ignore:rope_t:UserWarning")  # of keys of no use, of two bases
@settings(max_examples=300)
@given(CHANGES, st.sampled_from(["rope_scaling", "rope_parameters"]), st.none() | ROPES)
@example({"rms_norm_eps": float("nan")}, "rope_scaling", None)
@example({"rope_theta": float("inf")}, "rope_scaling", None)
@example({"eos_token_id": "2"}, "rope_scaling", None)
@example({"id2label": ["no"]}, "rope_scaling", None)
@example({"id2label": {"no": 0}}, "rope_scaling", None)
@example({"rope_scaling": "linear"}, "rope_parameters", None)
@example({"original_max_position_embeddings": "x"}, "rope_scaling", {"type": "yarn", "factor": 2})
def test_any_values_give_a_config_or_a_sentence(changes: dict, spelling: str, rope: dict | None) -> None:
    try:
        config = LlamaConfig.from_dict(SMALL | changes | ({} if rope is None else {spelling: rope}))
    except LlamitaError as error:
        assert len(str(error).splitlines()) == 1
        return
    inv_freq, factor = frequencies(config)
    assert inv_freq.dtype == torch.float32
    assert factor > 0
    text = json.dumps(config.to_dict())
    assert json.dumps(LlamaConfig.from_dict(json.loads(text)).to_dict()) == text
