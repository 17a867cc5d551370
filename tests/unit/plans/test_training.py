"""Layers with written-out backward passes equal the plain ones, keep less, and step back for what they do not know."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_full_backward_hook

from llamita.attention import trained as attention
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError
from llamita.model import plan
from llamita.model.layers import LlamaMLP
from llamita.model.llama import LlamaForCausalLM
from llamita.plans import training

IDS = torch.tensor([[5, 9, 31, 2, 77, 60, 13], [8, 8, 1, 96, 40, 3, 22]])
DOCUMENTS = torch.tensor([0, 1, 2, 3, 0, 1, 2]).expand(2, -1)  # two in a row


def twins(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    plain = LlamaForCausalLM(config).to(dtype).train()
    fast = copy.deepcopy(plain)
    training.enable(fast, list(fast.model.layers), config)
    return plain, fast


def trained(model: LlamaForCausalLM, *, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The last hidden states, and the gradients."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model.model(IDS, position_ids=DOCUMENTS, use_cache=False, return_dict=True).last_hidden_state
    out.float().square().sum().backward() if out.dtype != torch.float64 else out.square().sum().backward()
    return out, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@contextmanager
def counting() -> Iterator[list[Tensor]]:
    """All tensors that are saved for a backward pass."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize(("dtype", "autocast", "close"), [
    (torch.float64, False, 1e-12), (torch.float32, False, 2e-6), (torch.float32, True, 3e-2),
    (torch.bfloat16, False, 3e-2),
])  # fmt: skip
def test_equals_the_plain_layers(tiny_config: LlamaConfig, dtype: torch.dtype, autocast: bool, close: float) -> None:
    """Forward to the bit; gradients up to the order of sums, which bf16 rounds at other places."""
    plain, fast = twins(tiny_config, dtype)
    (wanted, expected), (found, gradients) = (trained(model, autocast=autocast) for model in (plain, fast))
    assert torch.equal(found, wanted)
    assert gradients.keys() == expected.keys()
    differ = [float((gradients[name] - own).norm() / own.norm()) for name, own in expected.items()]
    assert 0 < max(differ) < close


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_attention_is_by_our_kernels(
    monkeypatch: pytest.MonkeyPatch, tiny_config: LlamaConfig, autocast: bool, is_swapped: bool
) -> None:
    """Also in a layer that keeps its plain forward."""
    plain, fast = twins(tiny_config.replace(head_dim=32))
    if is_swapped:
        for model in (plain, fast):
            layer = model.model.layers[1]
            layer.set_submodule("mlp.up_proj", nn.Sequential(layer.get_submodule("mlp.up_proj")))
    (wanted, expected) = trained(plain, autocast=autocast)
    calls: list[float] = []
    gradients_of = attention.gradients

    def counted(*args: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(scale)
        return gradients_of(*args, scale=scale)

    monkeypatch.setattr(attention, "gradients", counted)
    found, gradients = trained(fast, autocast=autocast)
    assert len(calls) == len(fast.model.layers)
    close = 3e-2 if autocast else 2e-6
    assert torch.equal(found, wanted) or (autocast and torch.allclose(found, wanted, rtol=0, atol=close))
    differ = [float((gradients[name] - own).norm() / own.norm()) for name, own in expected.items()]
    assert 0 < max(differ) < close


@pytest.mark.parametrize("autocast", [False, True])
def test_keeps_less_for_the_backward_pass(tiny_config: LlamaConfig, autocast: bool) -> None:
    plain, fast = twins(tiny_config)
    held = []
    for model in (plain, fast):
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        with counting() as saved:
            trained(model, autocast=autocast)
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in saved}
        held.append(sum(size for address, size in storages.items() if address not in weights))
    assert held[1] < 0.7 * held[0]


def test_frozen_weights_get_no_gradient(tiny_config: LlamaConfig) -> None:
    plain, fast = twins(tiny_config)
    for model in (plain, fast):
        for name, weight in model.named_parameters():
            weight.requires_grad_("k_proj" in name or "post_attention" in name or "embed" in name)
    (_, expected), (_, gradients) = trained(plain), trained(fast)
    assert gradients.keys() == expected.keys() and len(gradients) == 7
    assert all(torch.allclose(gradients[name], own, atol=1e-4) for name, own in expected.items())


class Louder(LlamaMLP):
    """A feed-forward of another class, on the same matrices."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Twice as much."""
        return 2 * super().forward(hidden_states)


def swap_part(layer: nn.Module) -> None:
    layer.set_submodule("mlp.up_proj", nn.Sequential(layer.get_submodule("mlp.up_proj"), nn.Tanh()))


def swap_class(layer: nn.Module) -> None:
    layer.get_submodule("mlp").__class__ = Louder


def hook(name: str) -> Callable[[nn.Module], object]:
    return lambda layer: layer.get_submodule(name).register_forward_hook(lambda module, _, out: 2 * out)


def patch(name: str) -> Callable[[nn.Module], object]:
    """Let a function of a module, on this one alone, give something else."""
    where, _, function = name.rpartition(".")

    def change(layer: nn.Module) -> None:
        module = layer.get_submodule(where)
        own = getattr(module, function)

        def changed(*arguments: Any) -> Any:
            out = own(*arguments)
            return tuple(2 * one for one in out) if isinstance(out, tuple) else 2 * out

        setattr(module, function, changed)

    return change


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a part is swapped": swap_part,
    "a part has another class": swap_class,
    **{f"{name} has a hook": hook(name) for name in ("self_attn.q_proj", "self_attn", "mlp", "input_layernorm")},
    **{
        f"{name} is patched": patch(name)
        for name in ("mlp.forward", "mlp.up_proj.forward", "self_attn.heads", "self_attn.join", "finish")
    },
    "another activation": lambda layer: setattr(layer.get_submodule("mlp"), "act_fn", F.relu),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_does_not_know_runs_plainly(tiny_config: LlamaConfig, change: str) -> None:
    plain, fast = twins(tiny_config)
    before = trained(plain)[0]
    for model in (plain, fast):
        CHANGES[change](model.model.layers[1])
    expected = trained(plain)[0]
    assert torch.equal(trained(fast)[0], expected)
    assert not torch.equal(expected, before)


def of_a_module(layer: nn.Module, twice: Callable[..., Any]) -> Any:
    return layer.get_submodule("mlp.up_proj").register_full_backward_hook(twice)


def of_what_comes_to_a_module(layer: nn.Module, twice: Callable[..., Any]) -> Any:
    return layer.get_submodule("mlp.up_proj").register_full_backward_pre_hook(lambda _, d_out: twice(_, d_out))


def of_all(layer: nn.Module, twice: Callable[..., Any]) -> Any:
    up = layer.get_submodule("mlp.up_proj")
    return register_module_full_backward_hook(lambda one, d_in, _: twice(one, d_in) if one is up else None)


@pytest.mark.filterwarnings("ignore:.*ackward hook:UserWarning")  # on modules that give no tensor, or take none
@pytest.mark.parametrize("hooks", [of_a_module, of_what_comes_to_a_module, of_all])
def test_hooks_of_backward_passes_are_called(tiny_config: LlamaConfig, hooks: Callable[..., Any]) -> None:
    plain, fast = twins(tiny_config)
    _, before = trained(plain)
    found = []
    for model in (plain, fast):
        handle = hooks(model.model.layers[0], lambda _, gradients, *__: (2 * gradients[0],))
        found.append(trained(model)[1])
        handle.remove()
    assert all(torch.allclose(found[1][name], own, atol=1e-4) for name, own in found[0].items())
    assert not torch.allclose(before["model.embed_tokens.weight"], found[0]["model.embed_tokens.weight"], atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*ackward hook:UserWarning")  # on modules that give no tensor, or take none
@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("change", ["a hook", "a hook of all", "a patched class"])
def test_hooks_of_the_head_are_called(
    tiny_config: LlamaConfig, chunk: int, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = LlamaForCausalLM(tiny_config), list[nn.Module]()
    model.loss(IDS, IDS, chunk=chunk).backward()
    if change == "a hook":
        model.lm_head.register_full_backward_hook(lambda module, *_: calls.append(module))
    own = nn.Linear.forward
    if change == "a patched class":
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (calls.append(self), own(self, x))[1])
    handle = register_module_full_backward_hook(lambda module, *_: calls.append(module)) if "all" in change else None
    model.loss(IDS, IDS, chunk=chunk).backward()
    if handle is not None:
        handle.remove()
    assert model.lm_head in calls


@pytest.mark.parametrize(("owner", "name"), [(F, "linear"), (F, "silu"), (LlamaMLP, "forward"), (torch, "rsqrt")])
def test_functions_that_are_replaced_are_called(
    tiny_config: LlamaConfig, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fast = twins(tiny_config)
    own = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments, **named: 2 * own(*arguments, **named))
    assert torch.equal(trained(fast)[0], trained(plain)[0])


def test_without_gradients_it_is_the_plain_model(tiny_config: LlamaConfig) -> None:
    plain, fast = twins(tiny_config)
    with torch.no_grad():
        assert torch.equal(fast(IDS).logits, plain(IDS).logits)


def test_a_model_of_another_activation_is_refused(tiny_config: LlamaConfig) -> None:
    config = tiny_config.replace(hidden_act="relu")
    model = LlamaForCausalLM(config)
    with pytest.raises(UnsupportedError, match=r"^the training plan knows SiLU and the numerics of hf, not relu"):
        training.enable(model, list(model.model.layers), config)
    assert plan.active(model) == ()


def test_recompute_runs_the_written_out_layer_again(tiny_config: LlamaConfig) -> None:
    _, fast = twins(tiny_config)
    _, expected = trained(fast)
    fast.gradient_checkpointing_enable()
    assert plan.active(fast) == ("training", "recompute")
    _, gradients = trained(fast)
    assert all(torch.equal(gradients[name], own) for name, own in expected.items())
    fast.gradient_checkpointing_disable()
    assert plan.active(fast) == ("training",)
