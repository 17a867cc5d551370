"""DoRA against its formula, its gradients, and what it refuses."""

import pytest
import torch
from torch import nn

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.dora import DoraPair
from llamita.adapters.layer import LoraLayer
from llamita.adapters.lora import add_lora, lora_layers
from llamita.errors import UnsupportedError
from llamita.quant.surgery import quantize
from tests.small import CONFIG

DORA = LoraConfig(r=3, lora_alpha=6, target_modules="q_proj", use_dora=True)


def layer(config: LoraConfig = DORA, *, bias: bool = True) -> LoraLayer:
    """A layer with an adapter, in fp64."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.q_proj = nn.Linear(7, 5, bias=bias, dtype=torch.float64)
    add_lora(model, config)
    return lora_layers(model)["q_proj"]


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_weight_of_the_paper(bias: bool) -> None:
    one = layer(bias=bias)
    pair, base = one.pairs["default"], one.base_layer
    assert isinstance(pair, DoraPair)
    assert isinstance(base, nn.Linear)
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(one(x), base(x), rtol=0, atol=1e-14)  # at first it changes nothing
    for parameter in pair.parameters():
        nn.init.normal_(parameter)
    direction = base.weight + 2 * pair.B @ pair.A
    weight = pair.magnitude[:, None] * direction / direction.detach().norm(dim=1, keepdim=True)
    wanted = nn.functional.linear(x, weight, base.bias)
    torch.testing.assert_close(one(x), wanted, rtol=0, atol=1e-12)
    grad, parameters = torch.randn_like(wanted), list(pair.parameters())
    mine, exact = (torch.autograd.grad(out, parameters, grad) for out in (one(x), wanted))
    torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)
    one.merge()
    torch.testing.assert_close(base.weight, weight, rtol=0, atol=1e-14)


def test_dropout_is_of_the_adapter_s_x_as_a_whole() -> None:
    one = layer(LoraConfig(target_modules="q_proj", use_dora=True, lora_dropout=1.0)).train()
    x = torch.randn(4, 7, dtype=torch.float64)
    assert torch.equal(one(x), one.base_layer(x))


def test_a_quantized_base_is_refused_and_stays_as_it_is() -> None:
    model = LlamaForCausalLM(CONFIG)
    quantize(model, "q8_0")
    with pytest.raises(UnsupportedError, match=r"^model\.layers\.0\.self_attn\.q_proj is quantized, and DoRA needs"):
        add_lora(model, DORA)
    assert not lora_layers(model)
