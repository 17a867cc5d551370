"""Facts of attention and of single layers: neutral where a file says nothing, one sentence where we cannot."""

from typing import Any

import pytest
import torch

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.bridge import transformers as peers
from llamita.checkpoint.gguf_config import config_to_gguf
from llamita.errors import UnsupportedError, UsageError

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_scale_is_that_of_transformers(backend: str) -> None:
    ours = LlamaForCausalLM(LlamaConfig(**SMALL, attention_scale=0.7, attn_implementation=backend)).eval()
    theirs, ids = peers.twin(ours), torch.arange(20).view(2, 10)
    for layer in theirs.model.layers:
        layer.self_attn.scaling = 0.7
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_scale_is_neutral_where_nothing_is_said() -> None:
    config = LlamaConfig(**SMALL)
    assert (config.attention_scale, config.softmax_scale) == (None, 8**-0.5)
    assert not {"attention_scale", "layer_types"} & config.to_dict().keys()
    scaled = config.replace(attention_scale=0.3)
    assert LlamaConfig.from_dict(scaled.to_dict()) == scaled and scaled.softmax_scale == 0.3
    with pytest.raises(UnsupportedError, match=r"^GGUF's Llama has no attention_scale"):
        config_to_gguf(scaled)


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan"), "0.5", True])
def test_a_scale_that_cannot_be_is_refused(scale: Any) -> None:
    with pytest.raises(UsageError, match=r"^attention_scale"):
        LlamaConfig(**SMALL, attention_scale=scale)


@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_layers_of_one_type_change_nothing(kind: str) -> None:
    config = LlamaConfig.from_dict({**SMALL, "layer_types": [kind, kind]})
    assert config.layer_types == (kind, kind) and config.sliding_window is None
    assert LlamaConfig.from_dict(config.to_dict()) == config and config.to_dict()["layer_types"] == [kind, kind]
    assert config.replace(num_hidden_layers=3).layer_types == (kind,) * 3
    assert LlamaForCausalLM(config).first_layers(1).config.layer_types == (kind,)
    assert LlamaConfig.from_dict({**SMALL, "layer_types": None}) == LlamaConfig(**SMALL)


@pytest.mark.parametrize(
    ("types", "error", "reason"),
    [
        ([FULL, SLIDING], UnsupportedError, "^layer_types mixes .* not supported yet"),
        ([FULL], UsageError, r"^layer_types is .*: give one name for each of the 2 layers"),
        (FULL, UsageError, "^layer_types is 'full_attention'"),
        (3, UsageError, "^layer_types is 3"),
        ([3, FULL], UnsupportedError, "^layer_types has 3: use full_attention or"),
        (["chunked_attention"] * 2, UnsupportedError, "^layer_types has 'chunked_attention'"),
        ([[FULL], [FULL]], UnsupportedError, "^layer_types has "),
    ],
)
def test_types_that_cannot_be_are_refused(types: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        LlamaConfig.from_dict({**SMALL, "layer_types": types})
