"""Functions that a fused model's torch pass looks up may be replaced, and modes may watch it: nothing is bypassed."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from llamita.attention import sdpa
from llamita.context import causal
from llamita.errors import UnsupportedError
from llamita.model import layers, llama, rope
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse, unsupported_reason
from llamita.plans.cpu.called import Called
from tests.unit.plans.cpu.models import plain

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
IDS = torch.tensor([[5, 9, 31]])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A fused model."""
    torch.manual_seed(3)
    return fuse(plain(**SIZES))


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> Tensor:
    """Those of the model as it is called."""
    return model(IDS, use_cache=True).logits


@torch.no_grad()
def plainly(model: LlamaForCausalLM) -> Tensor:
    """Those of torch."""
    return type(model).forward(model, IDS, use_cache=True).logits


def louder(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives another tensor."""
    return lambda *arguments, **named: 2 * function(*arguments, **named) + 0.5


REPLACED: list[tuple[Any, str]] = [
    (F, "linear"),
    (F, "embedding"),
    (F, "scaled_dot_product_attention"),
    (torch, "rsqrt"),
    (layers, "at_least_fp32"),
    (llama, "keep"),
    (rope, "rotate_half"),
    (rope.Rotation, "__call__"),
    (causal.Causal, "attend_to"),
    (sdpa, "attend"),
    (nn.Linear, "forward"),
]


@pytest.mark.parametrize(("owner", "name"), REPLACED)
def test_a_function_that_is_replaced_is_called(
    owner: Any, name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, kernels = plainly(model), logits(model)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, louder(getattr(owner, name)))
        assert torch.equal(logits(model), plainly(model))
        assert not torch.allclose(plainly(model), before)
        assert "would bypass it" in (unsupported_reason(model) or "")
        with pytest.raises(UnsupportedError, match=rf"{name} was replaced|not its class's own"):
            fuse(plain(**SIZES))
    assert torch.equal(logits(model), kernels)


def test_what_stands_in_a_table_is_looked_up_there(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, dtype = rope.NUMERICS["hf"]
    monkeypatch.setitem(rope.NUMERICS, "hf", (louder(turn), dtype))
    assert torch.equal(logits(model), plainly(model))


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_the_call_of_every_module_may_be_followed(
    name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(model)
    seen, own = [], getattr(nn.Module, name)

    def followed(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        seen.append(type(module))
        return own(module, *arguments, **named)

    monkeypatch.setattr(nn.Module, name, followed)
    logits(model)
    assert seen.count(nn.Linear) == 8 and layers.LlamaMLP in seen


class Functions(TorchFunctionMode):
    """Sees every function of torch."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Sees every operation of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_modes_see_every_operation(model: LlamaForCausalLM) -> None:
    logits(model)
    with Functions() as functions, torch.device("cpu"):
        assert torch.equal(logits(model), plainly(model))
    assert functions.seen.count("linear") == 2 * 8
    with Operations() as operations:
        logits(model)
    assert operations.seen.count("rsqrt.default") == 3
    with FlopCounterMode(display=False) as counter:
        logits(model)
    assert counter.get_total_flops() > 2 * 3 * sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    with torch.device("cpu"):  # only says where new tensors are
        assert not torch.equal(logits(model), plainly(model))


def test_a_function_from_elsewhere_is_known_though_it_was_there_first() -> None:
    home = ModuleType("home")
    vars(home).update(mine=louder(F.linear), own=layers.at_least_fp32)
    assert Called({home: ("own",)}).replaced() is None
    assert Called({home: ("own", "mine")}).replaced() == "mine"
