"""Putting torch.compile on a model and taking it back; what it says where it cannot."""

import copy
import shutil

import pytest
import torch
from torch import nn

from llamita import LlamaConfig, LlamaForCausalLM, LlamaModel
from llamita.errors import UnsupportedError, UsageError
from llamita.model.plan import active
from llamita.model.surgery import replace
from llamita.plans.compile import PLANS, CompiledForward, CompiledLayerParts, compile_model

IDS = torch.tensor([[3, 1, 4, 1, 5]])
plans = pytest.mark.parametrize("plan", ["regional", "full"])


@pytest.fixture
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.compiler.reset()
    return LlamaForCausalLM(tiny_config.replace(num_hidden_layers=2)).eval().requires_grad_(False)


@plans
def test_a_plan_changes_no_weight_and_no_name_and_is_taken_back(model: LlamaForCausalLM, plan: str) -> None:
    names, before = list(model.state_dict()), model(IDS).logits
    assert compile_model(model, plan, backend="eager") is model
    assert list(model.state_dict()) == names
    assert torch.equal(model(IDS).logits, before)
    compile_model(model, "off")
    assert not active(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_one_plan_replaces_the_other(model: LlamaForCausalLM) -> None:
    compile_model(model, "regional", backend="eager")
    assert all(isinstance(layer.forward, CompiledLayerParts) for layer in model.model.layers)
    compile_model(model, "full", backend="eager")
    assert isinstance(model.forward, CompiledForward)
    assert not any("forward" in vars(layer) for layer in model.model.layers)


@plans
def test_a_model_without_a_head_is_compiled_too(tiny_config: LlamaConfig, plan: str) -> None:
    torch.compiler.reset()
    model = LlamaModel(tiny_config).eval().requires_grad_(False)
    before = model(IDS).last_hidden_state
    assert torch.equal(compile_model(model, plan, backend="eager")(IDS).last_hidden_state, before)


@plans
def test_a_deep_copy_runs_its_own_weights(model: LlamaForCausalLM, plan: str) -> None:
    compile_model(model, plan, backend="eager")
    before, twin = model(IDS).logits, copy.deepcopy(model)
    for weight in twin.parameters():
        weight.mul_(1.5)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.equal(twin(IDS).logits, before)


@plans
def test_weights_and_modules_changed_afterwards_are_seen(model: LlamaForCausalLM, plan: str) -> None:
    plain = copy.deepcopy(model)
    compile_model(model, plan, backend="eager")(IDS)
    for changed in (model, plain):
        changed.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2)
        replace(changed, "layers.0.self_attn.o_proj", lambda old: nn.Sequential(old, nn.Tanh()))
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_unknown_plan_is_named_with_the_known(model: LlamaForCausalLM) -> None:
    with pytest.raises(UsageError, match=r"^compile is 'fast': use one of off, regional, full$"):
        compile_model(model, "fast")
    assert list(PLANS) == ["off", "regional", "full"]


@plans
def test_a_recomputed_model_is_refused(model: LlamaForCausalLM, plan: str) -> None:
    model.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedError, match=r"recomputed cannot be compiled: switch recompute off first$"):
        compile_model(model, plan)
    compile_model(model, "off")
    assert model.is_gradient_checkpointing


@plans
def test_another_plans_forward_is_left_alone(model: LlamaForCausalLM, plan: str) -> None:
    model.forward = lambda *args: "another's"
    with pytest.raises(UnsupportedError, match=r"^the model's forward is another plan's already"):
        compile_model(model, plan)
    assert model.forward() == "another's"


@plans
def test_a_batch_invariant_model_is_refused(model: LlamaForCausalLM, plan: str) -> None:
    model.set_attn_implementation("fixed")
    with pytest.raises(UnsupportedError, match=r"^a batch-invariant model cannot be compiled"):
        compile_model(model, plan)


@pytest.mark.early
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inductor_comes_close() -> None:
    torch.compiler.reset()
    config = LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1,
        num_hidden_layers=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        expected = model(IDS).logits
        out = compile_model(model, "regional")(IDS).logits
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
