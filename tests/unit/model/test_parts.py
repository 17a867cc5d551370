"""A decoder layer described once: every part is found, and what has no description is refused in one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llamita
from llamita import LlamaConfig, LlamaForCausalLM
from llamita.errors import UnsupportedError
from llamita.model.parts import LEAVES, NAMES, PRODUCTS, parts_of, unknown


class OddMLP(nn.Module):
    """A feed-forward of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is changed."""
        return x


def test_all_parts_of_a_layer_are_named_and_no_other(tiny_config: LlamaConfig) -> None:
    layer: Any = LlamaForCausalLM(tiny_config).model.layers[1]
    parts = parts_of(layer, tiny_config, plan="a plan")
    leaves = {name for name, module in layer.named_modules() if list(module.parameters(recurse=False))}
    assert leaves == set(NAMES.values())
    for part, name in NAMES.items():
        assert getattr(parts, part) is layer.get_submodule(name)
        assert name.endswith(LEAVES[part])
    assert parts.products == tuple(getattr(parts, name) for name in PRODUCTS) and parts.qkv == parts.products[:3]
    assert (parts.index, parts.head_dim) == (1, tiny_config.head_dim)


@torch.no_grad()
def test_the_parts_are_all_that_a_layer_computes_with(tiny_config: LlamaConfig) -> None:
    layer: Any = LlamaForCausalLM(tiny_config).model.layers[0]
    parts, x = parts_of(layer, tiny_config, plan="a plan"), torch.randn(1, 4, tiny_config.hidden_size)
    normed = parts.input_norm(x)
    q, k, v = (one(normed).unflatten(-1, (-1, parts.head_dim)) for one in parts.qkv)
    assert all(map(torch.equal, (q, k, v), layer.self_attn.heads(normed)))
    attended = parts.o(q.flatten(-2))
    wanted = x + attended
    normed = parts.post_norm(wanted)
    wanted = wanted + parts.down(F.silu(parts.gate(normed)) * parts.up(normed))
    assert torch.equal(layer.finish(x, layer.self_attn.join(q)), wanted)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", r"^a Sequential is no plain Llama layer, which a plan does not know: use the model without$"),
        ("mlp", "^a OddMLP in the place of mlp is no part"),
        ("self_attn", "^a OddMLP in the place of self_attn is no part"),
        ("post_attention_layernorm", "^a OddMLP in the place of post_attention_layernorm is no part"),
    ],
)
def test_what_has_no_description_is_refused(where: str, reason: str, tiny_config: LlamaConfig) -> None:
    layer: Any = LlamaForCausalLM(tiny_config).model.layers[0]
    if where:
        setattr(layer, where, OddMLP())
    with pytest.raises(UnsupportedError, match=reason):
        parts_of(layer if where else nn.Sequential(layer), tiny_config, plan="a plan")


def test_an_activation_that_the_config_does_not_name_is_refused(tiny_config: LlamaConfig) -> None:
    layer: Any = LlamaForCausalLM(tiny_config).model.layers[0]
    layer.mlp.act_fn = F.relu
    with pytest.raises(UnsupportedError, match=r"^an activation that is not silu, as its config says"):
        parts_of(layer, tiny_config, plan="a plan")


def test_one_place_says_what_kernels_do_not_know(tiny_config: LlamaConfig) -> None:
    dynamic = tiny_config.replace(rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    assert unknown(tiny_config) is unknown(dynamic, any_rotary=True) is None
    assert (unknown(dynamic) or "").startswith("its rotary type dynamic depends on the length")
    assert (unknown(tiny_config.replace(hidden_act="gelu")) or "").startswith("its activation is gelu")


def test_no_plan_names_a_projection() -> None:
    plans = Path(llamita.__file__).parent / "plans"
    names = re.compile(rf"(?<!\w)({'|'.join(LEAVES[part] for part in PRODUCTS)})(?!\w)")
    found = [str(path) for path in plans.rglob("*.py") if names.search(path.read_text(encoding="utf-8"))]
    assert found == []
