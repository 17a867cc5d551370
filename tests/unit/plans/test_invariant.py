"""Entering batch-invariant mode, and what it refuses."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.errors import UnsupportedError
from llamita.model.plan import active
from llamita.plans.invariant import RowPaddedLinear, VectorPaddedActivation, invariant


def test_weights_and_names_stay_and_logits_come_close(tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config).eval()
    ids = torch.arange(12).view(2, 6)
    names, before = list(model.state_dict()), model(ids).logits
    assert "invariant" not in active(model)
    assert invariant(model) is model
    assert "invariant" in active(model)
    assert model.config.attn_implementation == model.model.config.attn_implementation == "fixed"
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)


def test_twice_is_once(tiny_config: LlamaConfig) -> None:
    model = invariant(invariant(LlamaForCausalLM(tiny_config)))
    function = model.model.layers[0].mlp.act_fn
    assert isinstance(function, VectorPaddedActivation)
    assert function.function is F.silu


def test_a_deep_copy_runs_its_own_weights(tiny_config: LlamaConfig) -> None:
    model = invariant(LlamaForCausalLM(tiny_config).eval().requires_grad_(False))
    twin, ids = copy.deepcopy(model), torch.arange(6)[None]
    before = model(ids).logits
    for weight in twin.parameters():
        weight.mul_(1.5)
    assert torch.equal(model(ids).logits, before)
    assert not torch.equal(twin(ids).logits, before)


def test_from_pretrained_has_it_as_an_option(small_path: Path) -> None:
    ids = torch.arange(9)[None]
    model = LlamaForCausalLM.from_pretrained(small_path, deterministic=True)
    assert "invariant" in active(model)
    assert "invariant" not in active(LlamaForCausalLM.from_pretrained(small_path))
    whole = model(ids, use_cache=False).logits
    assert torch.equal(model(ids[:, :1], use_cache=False).logits, whole[:, :1])


def test_gradients_reach_all_weights(tiny_config: LlamaConfig) -> None:
    plain = LlamaForCausalLM(tiny_config)
    model, ids = invariant(copy.deepcopy(plain)), torch.arange(40).view(2, 20)
    for each in (plain, model):
        each(ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5), (16, 5), (3, 7, 5), (0, 5)])
def test_products_keep_their_shape(shape: tuple[int, ...]) -> None:
    product, x = nn.Linear(5, 3), torch.randn(shape)
    torch.testing.assert_close(RowPaddedLinear(product)(x), product(x))


@pytest.mark.parametrize("shape", [(1, 5), (3, 7, 5), (40_000,), (0, 5)])
def test_every_element_is_computed_alike_wherever_it_is(shape: tuple[int, ...]) -> None:
    steady = VectorPaddedActivation(F.silu)
    assert torch.equal(steady(torch.full(shape, 1.2345)), steady(torch.tensor([1.2345])).expand(shape))
    x = torch.randn(shape)
    torch.testing.assert_close(steady(x), F.silu(x))


def test_frequencies_that_depend_on_the_batch_are_refused(tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config.replace(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))
    with pytest.raises(UnsupportedError, match=r"does not know the rotary type dynamic, whose frequencies depend on"):
        invariant(model)
    assert model.config.attn_implementation == "sdpa"


def test_another_plans_forward_is_refused(tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config)
    model.forward = lambda: "another's"  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match=r"^the model's forward is another plan's already"):
        invariant(model)
