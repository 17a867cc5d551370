"""Frozen weights in bf16: where bf16 holds them exactly, and then without any other bit."""

import copy

import pytest
import torch
from torch import Tensor

from llamita.adapters.config import LoraConfig
from llamita.adapters.frozen import FrozenLinear, keep_in_halves
from llamita.adapters.lora import add_lora, lora_layers
from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM

IDS = torch.tensor([[5, 9, 31, 2, 77, 60, 13], [8, 8, 1, 96, 40, 3, 22]])


def adapted(config: LlamaConfig, *, is_exact: bool = True) -> LlamaForCausalLM:
    """A model in fp32 with an adapter that does something; exact: with frozen weights that were bf16."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    if is_exact:
        model = model.to(torch.bfloat16).float()
    add_lora(model, LoraConfig(r=3, target_modules="all-linear"))
    for layer in lora_layers(model).values():
        for pair in layer.pairs.values():
            torch.nn.init.normal_(pair.get_parameter("B"))
    return model.train()


def trained(model: LlamaForCausalLM, *, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model(IDS).logits
    out.float().square().sum().backward()
    return out, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_no_bit_changes(tiny_config: LlamaConfig, autocast: bool, has_bias: bool) -> None:
    plain = adapted(tiny_config.replace(attention_bias=has_bias))
    small = copy.deepcopy(plain)
    assert keep_in_halves(small) == 7 * tiny_config.num_hidden_layers
    bases = [layer.base_layer for layer in lora_layers(small).values()]
    assert all(type(base) is FrozenLinear and base.weight.dtype == torch.bfloat16 for base in bases)
    (wanted, expected), (found, gradients) = (trained(model, autocast=autocast) for model in (plain, small))
    assert torch.equal(found, wanted)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], own) for name, own in expected.items())


@pytest.mark.parametrize("case", ["fp32 values", "a shared weight", "a trained weight"])
def test_other_weights_stay(tiny_config: LlamaConfig, case: str) -> None:
    model = adapted(tiny_config, is_exact=case != "fp32 values")
    layers = list(lora_layers(model).values())
    expected = 0 if case == "fp32 values" else len(layers) - 1
    if case == "a shared weight":
        layers[0].base_layer.register_parameter("weight", layers[7].base_layer.get_parameter("weight"))
        expected = len(layers) - 2
    if case == "a trained weight":
        layers[0].base_layer.requires_grad_(True)
    assert keep_in_halves(model) == expected
    assert type(layers[0].base_layer) is torch.nn.Linear
