"""Swapping modules and putting them back."""

import pytest
import torch
from torch import Tensor, nn

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.errors import UsageError
from llamita.model.surgery import replace

CONFIG = LlamaConfig(vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def test_linears_are_swapped_and_put_back() -> None:
    model, ids = LlamaForCausalLM(CONFIG).eval(), torch.tensor([[3, 1, 4]])
    before, names = model(ids).logits, list(model.state_dict())
    swapped = replace(model, "layers.*.mlp.*_proj", Doubled)
    assert swapped == [f"model.layers.{layer}.mlp.{name}_proj" for layer in range(2) for name in ("gate", "up", "down")]
    assert not torch.equal(model(ids).logits, before)
    restored = replace(model, swapped, lambda module: module.inner)  # type: ignore[arg-type, return-value]
    assert restored == swapped
    assert torch.equal(model(ids).logits, before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("lm_head", 1),
        ("*_proj", 14),
        (["q_proj", "k_proj"], 4),
        ("layers.1", 1),
        ("model.layers.0.self_attn.?_proj", 4),
    ],
)
def test_globs_match_names_or_their_ends(where: str | list[str], count: int) -> None:
    assert len(replace(LlamaForCausalLM(CONFIG), where, Doubled)) == count


def test_a_module_inside_a_replaced_one_goes_with_it() -> None:
    model = LlamaForCausalLM(CONFIG)
    assert replace(model, ["mlp", "gate_proj"], Doubled) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert isinstance(model.get_submodule("model.layers.0.mlp.inner.gate_proj"), nn.Linear)


def test_a_module_in_two_places_is_built_once() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert replace(model, ["a", "b"], Doubled) == ["a", "b"]
    assert model["a"] is model["b"]


def test_nothing_found_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^no module is named 'self_attn.q_porj': did you mean .*self_attn\.q_proj"):
        replace(LlamaForCausalLM(CONFIG), ["mlp", "self_attn.q_porj"], Doubled)
