"""Copies of a model share its numbers, and what one of them changes stays its own."""

import torch

from llamita.adapters.config import LoraConfig
from llamita.adapters.copies import shared_copy
from llamita.adapters.lora import add_lora, merge_and_unload
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.surgery import quantize
from tests.small import CONFIG


def test_a_copy_has_the_same_memory_until_it_is_merged_into() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = shared_copy(model)
    assert {name: one.data_ptr() for name, one in copy.state_dict().items()} == {
        name: one.data_ptr() for name, one in model.state_dict().items()
    }
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    names = add_lora(copy, LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
    for name in names:
        torch.nn.init.normal_(copy.get_submodule(name).pairs["default"].B)
    merge_and_unload(copy)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        is_adapted = name.removesuffix(".weight") in names
        assert (copy.state_dict()[name].data_ptr() != tensor.data_ptr()) == is_adapted


def test_a_quantized_copy_has_the_same_matrices() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    quantize(model, "q8_0")
    copy = shared_copy(model)
    mine, its = (one.model.layers[0].self_attn.q_proj for one in (copy, model))
    assert mine is not its
    assert mine.matrix is its.matrix
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model(ids).logits)
