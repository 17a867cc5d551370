"""The products of a step by our kernels: as near to fp32 as autocast's, with adapters and stored matrices too."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llamita.adapters.config import LoraConfig
from llamita.adapters.frozen import keep_in_halves
from llamita.adapters.lora import add_lora, lora_layers
from llamita.adapters.pair import LoraPair
from llamita.config import LlamaConfig
from llamita.kernels.cpu import training as kernels
from llamita.model.factors import Factors
from llamita.model.llama import LlamaForCausalLM
from llamita.plans import recompute, training
from llamita.plans.training_products import Source, products
from llamita.quant.surgery import quantize

IDS = torch.randint(0, 96, (2, 21), generator=torch.Generator().manual_seed(4))
KINDS = ("full", "lora", "lora of three layers", "qlora")


@pytest.fixture
def config(tiny_config: LlamaConfig) -> LlamaConfig:
    """Sides that are multiples of 32."""
    return tiny_config.replace(
        vocab_size=96, hidden_size=64, intermediate_size=160, num_attention_heads=3, num_key_value_heads=1, head_dim=32
    )


def made(config: LlamaConfig, kind: str) -> LlamaForCausalLM:
    """A model of a kind; its adapters do something."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).to(torch.bfloat16).float()
    if kind == "qlora":
        quantize(model, "q8_0")
    if kind != "full":
        targets = ["*.q_proj", "*.up_proj", "*.down_proj"] if "three" in kind else "all-linear"
        add_lora(model, LoraConfig(r=5, lora_alpha=7, target_modules=targets))
        for layer in lora_layers(model).values():
            for pair in layer.pairs.values():
                nn.init.normal_(pair.get_parameter("B"), std=0.1)
    return model.train()


class Odd(nn.Linear):
    """A layer of somebody else."""


class Followed(TorchFunctionMode):
    """A mode that sees every function."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As without it."""
        return function(*args, **(kwargs or {}))


def trained(model: LlamaForCausalLM, *, autocast: bool = True) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradients."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model.loss(IDS, IDS, chunk=16)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - own).norm() / own.norm()) for name, own in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
def test_is_as_near_to_fp32_as_autocast(monkeypatch: pytest.MonkeyPatch, config: LlamaConfig, kind: str) -> None:
    plain = made(config, kind)
    fast = copy.deepcopy(plain)
    keep_in_halves(fast)
    training.enable(fast, list(fast.model.layers), config)
    calls: list[int] = []

    def counted(source: Source, factors: Sequence[Factors], *own: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(factors))
        return products(source, factors, *own)

    monkeypatch.setattr(training, "products", counted)
    monkeypatch.setattr(kernels, "has_products", lambda: True)
    (exact, expected), (loss, gradients), (found, fast_gradients) = (
        trained(plain, autocast=False), trained(plain), trained(fast)
    )  # fmt: skip
    assert calls == [3, 1, 2, 1] * config.num_hidden_layers
    renamed = {name.replace(".base_layer.weight", ".weight"): one for name, one in fast_gradients.items()}
    assert abs(found - exact) < max(2 * abs(loss - exact), 2e-3)
    assert 0 < distance(renamed, expected) < max(1.3 * distance(gradients, expected), 0.01)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_recomputed_layers_have_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, config: LlamaConfig, kind: str
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels, "has_products", lambda: True)
    kept = made(config, kind)
    again = copy.deepcopy(kept)
    for model in (kept, again):
        training.enable(model, list(model.model.layers), config)
    recompute.enable(again, list(again.model.layers))
    (loss, wanted), (found, gradients) = trained(kept), trained(again)
    assert found == loss and distance(gradients, wanted) == 0


@pytest.mark.parametrize(
    "odd", ["dropout", "two adapters", "a hook", "a side of 40", "fp32", "another class", "a patched class", "a mode"]
)
def test_what_is_not_known_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, config: LlamaConfig, odd: str) -> None:
    model = made(config.replace(intermediate_size=40) if "side" in odd else config, "lora")
    if odd == "dropout":
        for layer in lora_layers(model).values():
            layer.pairs["default"].dropout = 0.5  # type: ignore[assignment]
    if odd == "two adapters":
        add_lora(model, LoraConfig(r=2, target_modules="all-linear"), "other")
        for layer in lora_layers(model).values():
            layer.active = ("default", "other")
    if odd == "another class":
        for layer in lora_layers(model).values():
            layer.base_layer.__class__ = Odd
    if odd == "a patched class":
        own = LoraPair.forward
        monkeypatch.setattr(LoraPair, "forward", lambda *arguments: own(*arguments))
    training.enable(model, list(model.model.layers), config)
    if odd == "a hook":
        for layer in lora_layers(model).values():
            layer.pairs["default"].register_forward_hook(lambda *_: None)
    monkeypatch.setattr(training, "products", None)
    monkeypatch.setattr(kernels, "has_products", lambda: True)
    with Followed() if odd == "a mode" else nullcontext():
        trained(model, autocast=odd != "fp32")


def test_torch_multiplies_where_it_is_the_faster(monkeypatch: pytest.MonkeyPatch, config: LlamaConfig) -> None:
    model = made(config, "full")
    training.enable(model, list(model.model.layers), config)
    monkeypatch.setattr(kernels, "has_products", lambda: False)
    monkeypatch.setattr(training, "products", None)
    loss, _ = trained(model)
    assert loss > 0


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64, None], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype | None]:
    """Another default dtype; None: another default device."""
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)
    torch.set_default_device(None)


@pytest.mark.parametrize("kind", ["full", "qlora"])
def test_training_is_the_same_under_every_default(
    monkeypatch: pytest.MonkeyPatch, config: LlamaConfig, kind: str, default: torch.dtype | None
) -> None:
    """Kernels get the buffers that they write to, whatever torch's defaults are."""
    monkeypatch.setattr(kernels, "has_products", lambda: True)
    model = made(config, kind)
    training.enable(model, list(model.model.layers), config)
    loss, wanted = trained(model)
    wanted = {name: one.clone() for name, one in wanted.items()}
    if default is None:
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(default)
    found, gradients = trained(model)
    assert found == loss
    assert all(torch.equal(gradients[name], own) for name, own in wanted.items())
