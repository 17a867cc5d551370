"""The parts of a layer against transformers' own, alone."""

import pytest
import torch
import transformers
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama as peer

from llamita import LlamaConfig, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from llamita.config import ACTIVATIONS as NAMES
from llamita.context import Causal, from_arguments
from llamita.model.activations import ACTIVATIONS

CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=6,
    num_key_value_heads=3, head_dim=10, attention_bias=True, mlp_bias=True,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_activations(name: str, dtype: torch.dtype) -> None:
    x = (torch.randn(1000) * 4).to(dtype)
    assert torch.equal(ACTIVATIONS[name](x), ACT2FN[name](x))


def test_every_activation_of_the_config_is_there() -> None:
    assert set(ACTIVATIONS) == set(NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norm(dtype: torch.dtype) -> None:
    ours, theirs = LlamaRMSNorm(33, eps=1e-5), peer.LlamaRMSNorm(33, eps=1e-5)
    ours.weight.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 33).to(dtype)
    assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))
    assert "33" in repr(ours)
    assert ours.variance_epsilon == 1e-5


@pytest.mark.parametrize("name", ["silu", "gelu", "relu2"])
def test_mlp(name: str) -> None:
    config = CONFIG.replace(hidden_act=name)
    ours, theirs = LlamaMLP(config), peer.LlamaMLP(transformers.LlamaConfig(**config.to_dict()))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 24)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_by_hand(dtype: torch.dtype) -> None:
    their_config = transformers.LlamaConfig(**CONFIG.to_dict(), attn_implementation="sdpa")
    ours, theirs = LlamaDecoderLayer(CONFIG, 0).to(dtype), peer.LlamaDecoderLayer(their_config, 0).to(dtype)
    for parameter in ours.parameters():
        parameter.data.normal_(0.0, 0.5)
    theirs.load_state_dict(ours.state_dict())
    x, positions = torch.randn(2, 7, 24).to(dtype), torch.arange(7)[None]
    context = from_arguments(x, scale=CONFIG.head_dim**-0.5)
    assert isinstance(context, Causal)
    out = ours(x, LlamaRotaryEmbedding(CONFIG)(positions, dtype), context)
    angles = peer.LlamaRotaryEmbedding(their_config)(x, positions)
    assert out.shape == (2, 7, 24)
    assert torch.equal(out, theirs(x, position_embeddings=angles, attention_mask=None))


def test_a_model_in_fp64_is_computed_in_fp64() -> None:
    """What distributed training is compared in: a norm in fp32 would hide errors below 1e-7."""
    ours = LlamaRMSNorm(24, eps=1e-6).double()
    torch.nn.init.normal_(ours.weight)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert (ours(x) - torch.nn.functional.rms_norm(x, (24,), ours.weight, eps=1e-6)).abs().max() < 1e-14
