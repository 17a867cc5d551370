"""Families: what their files mean by a key that is left out, and their names in GGUF."""

from typing import Any

import pytest
import transformers

from llamita import LlamaConfig
from llamita.checkpoint.gguf_config import config_to_gguf
from llamita.errors import UnsupportedError
from llamita.families import FAMILIES

PEERS = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
FACTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "use_cache", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "attention_dropout", "sliding_window",
)  # fmt: skip
FILES: list[dict[str, Any]] = [
    {}, {"sliding_window": None}, {"sliding_window": 7}, {"num_key_value_heads": 4}, {"intermediate_size": 64},

]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_means_what_it_means_to_transformers(family: str, file: dict[str, Any]) -> None:
    ours = LlamaConfig.from_dict({**file, "model_type": family})
    theirs = PEERS[family].from_dict({**file, "model_type": family})
    assert {name: getattr(ours, name) for name in FACTS} == {name: getattr(theirs, name, None) for name in FACTS}


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_again(family: str, window: int | None) -> None:
    config = LlamaConfig(model_type=family, sliding_window=window)
    assert LlamaConfig.from_dict(config.to_dict()) == config
    assert PEERS[family].from_dict(config.to_dict()).num_key_value_heads == 32
    assert getattr(PEERS[family].from_dict(config.to_dict()), "sliding_window", None) == window


@pytest.mark.parametrize("kind", ["qwen3", 3, None, ["llama"]])
def test_other_families_are_refused_by_name(kind: Any) -> None:
    if kind is None:
        assert LlamaConfig.from_dict({"model_type": None}).model_type == "llama"
        return
    with pytest.raises(UnsupportedError, match=r"^model_type .* is not supported: use one of llama, mistral$"):
        LlamaConfig.from_dict({"model_type": kind})


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_keys_begin_with_the_family_s_own(family: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    fields, _ = config_to_gguf(LlamaConfig(model_type=family, rope_parameters=yarn))
    assert {key.partition(".")[0] for key in fields} == {FAMILIES[family].gguf, "llamita"}
