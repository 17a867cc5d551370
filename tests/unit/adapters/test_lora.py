"""Adapters on a model: what trains, which one computes, merging back and forth, a quantized base, what is refused."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.layer import LoraLayer
from llamita.adapters.lora import (
    active_adapters,
    adapters,
    add_lora,
    lora_layers,
    merge_adapters,
    merge_and_unload,
    set_adapter,
    unload_adapters,
    unmerge_adapters,
)
from llamita.adapters.pair import LoraPair
from llamita.errors import UnsupportedError, UsageError
from llamita.model.fingerprint import fingerprint
from llamita.model.plan import stand_in_of
from llamita.plans.invariant import invariant
from llamita.quant.linear import QuantizedLinear
from llamita.quant.surgery import quantize, quantized_layers
from tests.small import CONFIG

IDS = torch.arange(18).view(2, 9)
ALL = LoraConfig(r=4, target_modules="all-linear")


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG.replace(num_hidden_layers=2)).eval()


def randomized(model: nn.Module, name: str = "default") -> None:
    """Give an adapter random numbers."""
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        for parameter in layer.pairs[name].parameters() if name in layer.pairs else ():
            nn.init.normal_(parameter, std=0.3)


def test_globs_choose_layers(model: LlamaForCausalLM) -> None:
    names = add_lora(model, LoraConfig(target_modules=["layers.1.mlp.*_proj", "q_proj"]))
    parts = ["0.self_attn.q", "1.self_attn.q", "1.mlp.gate", "1.mlp.up", "1.mlp.down"]
    assert names == list(lora_layers(model)) == [f"model.layers.{part}_proj" for part in parts]
    assert len(add_lora(model, ALL, "all")) == 14  # the layers that have one already are among them


@torch.no_grad()
def test_a_new_adapter_changes_nothing(model: LlamaForCausalLM) -> None:
    before = model(IDS).logits
    add_lora(model, ALL)
    assert torch.equal(model(IDS).logits, before)


def test_gradients_reach_a_and_b_alone(model: LlamaForCausalLM) -> None:
    add_lora(model, ALL)
    randomized(model)
    model(IDS, labels=IDS).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"{name}.pairs.default.{letter}" for name in lora_layers(model) for letter in "AB"}
    assert all(parameter.requires_grad == (name in trained) for name, parameter in model.named_parameters())


def test_recomputed_layers_and_copies_have_the_same_gradients(model: LlamaForCausalLM) -> None:
    add_lora(model, LoraConfig(target_modules="all-linear", lora_dropout=0.2))
    randomized(model)
    seen = []
    for one in (model.train(), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        if one is not model:
            one.gradient_checkpointing_enable()
        torch.manual_seed(2)
        one(IDS, labels=IDS, use_cache=False).loss.backward()
        seen.append([parameter.grad for parameter in one.parameters() if parameter.requires_grad])
    for grads in seen[1:]:
        assert all(map(torch.equal, seen[0], grads))


@torch.no_grad()
def test_active_adapters_are_added_in_order(model: LlamaForCausalLM) -> None:
    add_lora(model, LoraConfig(r=2, target_modules="q_proj"), "one")
    add_lora(model, LoraConfig(r=3, target_modules=["q_proj", "v_proj"]), "two")
    randomized(model, "one")
    randomized(model, "two")
    assert active_adapters(model) == ("one",)
    assert {name: config.r for name, config in adapters(model).items()} == {"one": 2, "two": 3}
    layer = lora_layers(model)["model.layers.0.self_attn.q_proj"]
    x = torch.randn(5, 64)
    base = layer.base_layer(x)
    one, two = (pair.product(x) * pair.scaling for pair in layer.pairs.values() if isinstance(pair, LoraPair))
    for names, wanted in (((), base), (("two",), base + two), (("two", "one"), base + two + one)):
        set_adapter(model, *names)
        assert torch.equal(layer(x), wanted)
    with pytest.raises(UsageError, match=r"^no adapter is named 'three': the model has one, two"):
        set_adapter(model, "three")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_merging_is_the_same_function_and_goes_back_to_the_bit(dtype: torch.dtype, model: LlamaForCausalLM) -> None:
    model.to(dtype)
    before, base = copy.deepcopy(model.state_dict()), model(IDS).logits
    name = fingerprint(model)
    add_lora(model, ALL)
    randomized(model)
    adapted = model(IDS).logits
    merge_adapters(model)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(model(IDS).logits, adapted, rtol=tolerance, atol=tolerance)
    assert (adapted - base).abs().max() > 2 * tolerance
    unmerge_adapters(model)
    assert torch.equal(model(IDS).logits, adapted)
    other = copy.deepcopy(model)
    merge_adapters(model)
    merged = model(IDS).logits
    unload_adapters(model)
    merge_and_unload(other)
    for one in (model, other):
        assert not lora_layers(one)
        assert torch.equal(one(IDS).logits, merged)
    assert fingerprint(model) != name
    add_lora(model, ALL)
    unload_adapters(model)
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("use_dora", [False, True])
@torch.no_grad()
def test_batch_invariant_mode_reaches_the_adapters(use_dora: bool, model: LlamaForCausalLM) -> None:
    add_lora(model, LoraConfig(r=24, target_modules="all-linear", use_dora=use_dora))
    randomized(model)
    invariant(model)
    assert all(stand_in_of(layer) for layer in lora_layers(model).values())
    ids = torch.randint(0, 256, (11, 37), generator=torch.Generator().manual_seed(1))
    whole = model(ids).logits
    for part in (ids[4:5], ids[2:9]):
        start = 4 if len(part) == 1 else 2
        assert torch.equal(model(part).logits, whole[start : start + len(part)])
    assert torch.equal(model(ids[:, :5]).logits, whole[:, :5])


@torch.no_grad()
def test_unmerged_weights_are_the_original_ones(model: LlamaForCausalLM) -> None:
    before = copy.deepcopy(model.state_dict())
    add_lora(model, ALL)
    randomized(model)
    for _ in range(3):
        merge_adapters(model)
        unmerge_adapters(model)
    unload_adapters(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_each_choice_has_a_fingerprint_of_its_own(model: LlamaForCausalLM) -> None:
    seen = [fingerprint(model)]
    add_lora(model, ALL)
    for alpha, name in ((8, "default"), (16, "other")):
        if name != "default":
            add_lora(model, LoraConfig(r=4, lora_alpha=alpha, target_modules="all-linear"), name)
        for names in ((), (name,)):
            set_adapter(model, *names)
            seen.append(fingerprint(model))
    merge_adapters(model)
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen) == 6


def test_a_merged_model_changes_its_dtype(model: LlamaForCausalLM) -> None:
    add_lora(model, ALL)
    randomized(model)
    merge_adapters(model)
    model.double()
    unmerge_adapters(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_while_merged_nothing_else_is_done(model: LlamaForCausalLM) -> None:
    with pytest.raises(UsageError, match=r"^the model has no adapters to merge"):
        merge_adapters(model)
    add_lora(model, ALL)
    with pytest.raises(UsageError, match=r"^no adapters are merged"):
        unmerge_adapters(model)
    merge_adapters(model)
    with pytest.raises(UsageError, match="while adapters are merged"):
        merge_and_unload(model)
    for action in (lambda: set_adapter(model), lambda: merge_adapters(model), lambda: add_lora(model, ALL, "two")):
        with pytest.raises(UsageError, match=r"while adapters are merged: call unmerge_adapters"):
            action()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("qproj", "^no module is named 'qproj': did you mean q_proj"),
        ("mlp", r"^model\.layers\.0\.mlp is a LlamaMLP, and LoRA adapts linear layers"),
        ("norm", r"^model\.norm is a LlamaRMSNorm, and LoRA adapts linear layers"),
    ],
)
def test_targets_that_do_not_fit_change_nothing(targets: str, message: str, model: LlamaForCausalLM) -> None:
    with pytest.raises(UsageError, match=message):
        add_lora(model, LoraConfig(target_modules=["q_proj", targets]))
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_do_not_fit(model: LlamaForCausalLM) -> None:
    add_lora(model, ALL)
    with pytest.raises(UsageError, match=r"^the model has an adapter named 'default' already"):
        add_lora(model, ALL)
    for name in ("", "a.b"):
        with pytest.raises(UsageError, match=f"^an adapter cannot be named {name!r}"):
            add_lora(model, ALL, name)


def test_a_head_that_shares_the_embedding_is_adapted_but_not_merged(model: LlamaForCausalLM) -> None:
    add_lora(model, LoraConfig(target_modules="lm_head"))
    randomized(model)
    with pytest.raises(UnsupportedError, match=r"^lm_head shares its weight with another layer"):
        merge_adapters(model)


def test_a_model_with_adapters_is_not_saved_as_a_checkpoint(model: LlamaForCausalLM, tmp_path: Path) -> None:
    add_lora(model, ALL)
    with pytest.raises(UnsupportedError, match=r"^the model has adapters, which a checkpoint cannot hold"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_kernels_leave_a_model_with_adapters_to_torch(model: LlamaForCausalLM) -> None:
    from llamita.plans.cpu import fuse, unsupported_reason

    with torch.no_grad():
        base = model(IDS).logits
        fuse(model)
        add_lora(model, ALL)
        assert "is a LoraLayer that the kernels do not know" in str(unsupported_reason(model))
        randomized(model)
        adapted = model(IDS).logits
        assert (adapted - base).abs().max() > 0.01
        merge_adapters(model)
        unload_adapters(model)
        assert unsupported_reason(model) is None
        torch.testing.assert_close(model(IDS).logits, adapted, rtol=1e-4, atol=1e-4)


# QLoRA: the base in 8-bit blocks.


def dequantized(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose linear layers have the numbers that the quantized ones stand for."""
    plain = copy.deepcopy(model)
    for name, module in list(quantized_layers(model)):
        if isinstance(module, QuantizedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = nn.Parameter(module.matrix.dequantize(), requires_grad=False)
            plain.set_submodule(name, linear)
    return plain


def grads(layer: LoraLayer, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output of a layer, and the gradients in x, A and B."""
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.pairs.parameters()], grad)]


def test_qlora_equals_lora_on_the_dequantized_weights(model: LlamaForCausalLM) -> None:
    quantize(model, "q8_0")
    plain = dequantized(model)
    for one in (model, plain):
        add_lora(one, ALL)
        randomized(one)
    x, grad = torch.randn(2, 5, 64), torch.randn(2, 5, 176)
    name = "model.layers.1.mlp.up_proj"
    mine, exact = (grads(lora_layers(one)[name], x, grad) for one in (model, plain))
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(mine, exact, strict=True)]
    assert errors[0] <= 0.01  # x is rounded to 8 bits for the base's product
    assert max(errors[1:]) <= 1e-6  # gradients are not


def test_qlora_trains_and_is_not_merged(model: LlamaForCausalLM) -> None:
    quantize(model, "q8_0")
    add_lora(model, ALL)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with pytest.raises(UnsupportedError, match=r"is quantized, and merging would round it once more"):
        merge_adapters(model)
