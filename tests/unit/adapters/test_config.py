"""Configs of adapters: scaling, keys that are kept, and keys and values that are refused."""

import math
from typing import Any

import pytest

from llamita.adapters.config import LoraConfig
from llamita.errors import LlamitaError, UnsupportedError, UsageError

FILE = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


def test_scaling_is_alpha_by_the_rank_or_its_root() -> None:
    assert LoraConfig(r=4, lora_alpha=6).scaling("q_proj") == 1.5
    assert LoraConfig(r=3, lora_alpha=6, use_rslora=True).scaling("q_proj") == 6 / math.sqrt(3)


def test_patterns_choose_by_the_end_of_a_name() -> None:
    config = LoraConfig(r=4, rank_pattern={"q_proj": 2, r"layers\.\d+\.mlp\.up_proj": 3}, alpha_pattern={"q_proj": 5})
    assert [config.rank(f"layers.1.{name}") for name in ("self_attn.q_proj", "mlp.up_proj", "my_q_proj")] == [2, 3, 4]
    assert config.scaling("a.q_proj") == 2.5


def test_keys_without_effect_are_kept() -> None:
    values = {**FILE, "layer_replication": None, "use_new": False, "loftq_config": {}, "task_type": "CAUSAL_LM"}
    written = LoraConfig.from_dict(values).to_dict()
    assert {name: written[name] for name in values} == values
    assert LoraConfig.from_dict(written).to_dict() == written


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", 1),
        ("not_yet_invented", 0.5),
    ],
)
def test_keys_that_change_the_arithmetic_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"^{key} is .*, which changes what the adapter computes"):
        LoraConfig.from_dict({**FILE, key: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "^r is 0: it must be a whole number"),
        ({"r": True}, "^r is True"),
        ({"lora_alpha": -1}, "^lora_alpha is -1"),
        ({"lora_dropout": 2}, "^lora_dropout is 2"),
        ({"use_rslora": "yes"}, "^use_rslora is 'yes'"),
        ({"bias": "all"}, "^bias is 'all': llamita's adapters train no biases"),
        ({"target_modules": []}, r"^target_modules is \[\]: give names"),
        ({"target_modules": 3}, "^target_modules is 3"),
        ({"rank_pattern": [1]}, r"^rank_pattern is \[1\]"),
        ({"rank_pattern": {"q_proj": "4"}}, "^q_proj is '4'"),
        ({"alpha_pattern": {"(": 4}}, r"^'\(' is no regular expression"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LlamitaError, match=message):
        LoraConfig(**values)
    with pytest.raises(LlamitaError, match=message):
        LoraConfig.from_dict({**FILE, **values})


def test_other_kinds_of_adapters_are_refused() -> None:
    for kind in ("IA3", None):
        with pytest.raises(UnsupportedError, match=f"^peft_type is {kind!r}: llamita reads"):
            LoraConfig.from_dict({**FILE, "peft_type": kind})


def test_a_null_is_the_default() -> None:
    assert LoraConfig.from_dict({**FILE, "lora_alpha": None}).lora_alpha == 8
    with pytest.raises(UsageError):
        LoraConfig.from_dict({**FILE, "target_modules": ""})
