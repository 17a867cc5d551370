"""Adapters of an embedding: the sum of two tables, and what is refused."""

import pytest
import torch
from torch import nn

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.embedding import EmbeddingPair
from llamita.adapters.lora import add_lora, lora_layers, merge_adapters, targets
from llamita.errors import UnsupportedError, UsageError
from llamita.quant.surgery import quantize
from tests.small import CONFIG

EMBEDDING = LoraConfig(r=3, lora_alpha=6, target_modules="embed_tokens", lora_dropout=0.5)
IDS = torch.tensor([[1, 2, 2, 259]])  # the last is padding, whose row gets no gradient


def test_it_looks_up_the_sum_and_only_its_own_numbers_train() -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=False)).double()
    before = model.model.embed_tokens(IDS)
    assert add_lora(model, EMBEDDING) == ["model.embed_tokens"]
    layer = lora_layers(model)["model.embed_tokens"]
    pair, base = layer.pairs["default"], layer.base_layer
    assert isinstance(pair, EmbeddingPair)
    assert isinstance(base, nn.Embedding)
    assert torch.equal(layer(IDS), before)
    nn.init.normal_(pair.A)
    table = base.weight + 2 * (pair.B @ pair.A).T
    wanted = table[IDS]
    torch.testing.assert_close(layer(IDS), wanted, rtol=0, atol=1e-12)
    grad = torch.randn_like(wanted)
    grad[:, 3] = 0
    mine, exact = (torch.autograd.grad(out, list(pair.parameters()), grad) for out in (layer(IDS), wanted))
    torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)
    assert not base.weight.requires_grad
    merge_adapters(model)
    torch.testing.assert_close(base.weight, table, rtol=0, atol=1e-12)


def test_all_linear_leaves_it_out() -> None:
    assert not {"model.embed_tokens", "lm_head"} & set(
        targets(LlamaForCausalLM(CONFIG), LoraConfig(target_modules="all-linear"))
    )


def test_dora_and_a_quantized_embedding_are_refused() -> None:
    model = LlamaForCausalLM(CONFIG)
    with pytest.raises(UnsupportedError, match=r"^model\.embed_tokens is an embedding, and DoRA adapts linear layers"):
        add_lora(model, LoraConfig(target_modules=["q_proj", "embed_tokens"], use_dora=True))
    assert not lora_layers(model)
    add_lora(model, EMBEDDING)
    with pytest.raises(UnsupportedError, match=r"^model\.embed_tokens shares its weight with another layer"):
        merge_adapters(model)
    quantized = LlamaForCausalLM(CONFIG)
    quantize(quantized, "q8_0")
    with pytest.raises(UsageError, match=r"^model\.embed_tokens is a QuantizedEmbedding, and LoRA adapts"):
        add_lora(quantized, EMBEDDING)
