"""Outputs of modules: all of them, in order, and the first that differs."""

import copy

import torch

from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.model.module_outputs import first_difference, largest, outputs_of

IDS = torch.tensor([[1, 5, 3]])


def test_the_first_module_that_differs_is_named(tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.gate_proj.weight[0, 0] += 1
    with outputs_of(model) as some, outputs_of(other) as others:
        model(IDS), other(IDS)
    name, gap = first_difference(some, others)
    assert name == "model.layers.1.mlp.gate_proj"
    assert gap == largest(some[name], others[name]) > 0
    assert first_difference(some, some) == (None, 0.0)
    names = list(some)
    assert names[0] == "model.embed_tokens"
    assert names[-1] == "lm_head"
    model(torch.tensor([[2, 2, 2]]))  # the hooks are gone
    assert torch.equal(some["lm_head"], others["lm_head"]) is False
    assert not model.lm_head._forward_hooks
