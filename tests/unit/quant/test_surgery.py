"""Quantized models: what becomes of the layers, that they compute what their weights say, and what they refuse."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.kernels import plain_product, reference
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.block_matrix import from_raw
from llamita.quant.int8_matrix import Int8Rows
from llamita.quant.linear import QuantizedEmbedding, QuantizedLinear
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.surgery import (
    QuantizationChoice,
    choices,
    is_quantized,
    quantize,
    quantize_weight,
    quantized_layers,
)

NAMES = [*FORMATS, "int8"]


def small(*, is_tied: bool = True, has_biases: bool = False) -> LlamaForCausalLM:
    """A model whose sizes differ: rows of 256, of 288 (no multiple of 256), of 96 and 32."""
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=256,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=is_tied,
        attention_bias=has_biases,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def head_bytes(model: LlamaForCausalLM) -> Tensor:
    head: nn.Module = model.lm_head
    assert isinstance(head, QuantizedLinear)
    return head.matrix.raw()


def ids() -> Tensor:
    return torch.randint(0, 99, (2, 17))


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_weights(name: str) -> None:
    """As exact as 8 bits of activations allow: their error alone, and no other."""
    weight, x, bias = torch.randn(45, 512), torch.randn(3, 5, 512), torch.randn(45)
    packed = quantize_weight(name, weight)
    exact = x @ packed.dequantize().t() + bias
    found = packed.linear(x, bias)
    assert found.shape == exact.shape
    assert (found - exact).norm() / exact.norm() < 0.01
    assert torch.allclose(packed.linear(torch.zeros(2, 512), bias), bias.expand(2, 45))


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_reference_is_exact_for_rounded_activations(name: str) -> None:
    weight, x = torch.randn(45, 512), torch.randn(5, 512)
    xq, xs = reference.quantize_activations(x)
    codes = FORMATS[name].codes(FORMATS[name].quantize(weight))
    rounded = xq.double() * xs.double().repeat_interleave(32, dim=1)
    exact = rounded @ codes.dequantize().double().t()
    assert torch.allclose(plain_product.linear(x, codes).double(), exact, rtol=1e-5, atol=1e-4)


def test_activations_are_rounded_to_127_steps_and_halves_to_even() -> None:
    x = torch.zeros(2, 64)
    x[0, 0], x[0, 1], x[0, 2], x[1, 33] = 127.0, 0.5, -1.5, -0.25
    codes, scales = reference.quantize_activations(x)
    assert codes[0, :3].tolist() == [127, 0, -2]
    assert codes[1, 33] == -127
    assert scales.tolist() == [[1.0, 0.0], [0.0, pytest.approx(0.25 / 127)]]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_weights(name: str) -> None:
    packed = quantize_weight(name, torch.randn(45, 512))
    index = torch.tensor([[0, 44], [7, 7]])
    assert torch.equal(packed.rows(index), packed.dequantize()[index])


@pytest.mark.parametrize("is_tied", [True, False])
def test_layers_keep_their_names_and_take_their_formats(is_tied: bool) -> None:
    model = small(is_tied=is_tied)
    quantize(model, "q4_k_m")
    assert isinstance(model.model.embed_tokens, QuantizedEmbedding)
    forms = {name: layer.matrix.format_name for name, layer in quantized_layers(model)}
    assert len(forms) == 3 * 7 + 2
    assert forms["model.layers.0.self_attn.q_proj"] == "q4_k"
    assert forms["model.layers.2.self_attn.v_proj"] == "q6_k"
    assert forms["model.layers.1.mlp.down_proj"] == "q8_0"  # 288 columns
    assert forms["lm_head"] == "q6_k"
    assert forms["model.embed_tokens"] == ("q6_k" if is_tied else "q4_k")


def test_a_tied_head_shares_the_bytes() -> None:
    model = small()
    quantize(model, "q8_0")
    head: nn.Module = model.lm_head
    assert isinstance(head, QuantizedLinear)
    assert head.matrix is model.model.embed_tokens.matrix


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k", "q4_1", "int8"])
def test_logits_are_nearly_those_of_the_dequantized_model(recipe: str) -> None:
    model, tokens = small(is_tied=False, has_biases=True), ids()
    twin = copy.deepcopy(model)
    quantize(model, recipe)
    for name, layer in quantized_layers(model):
        twin.get_submodule(name).weight.data = layer.matrix.dequantize()
    ours, theirs = model(tokens).logits, twin(tokens).logits
    assert (ours - theirs).norm() / theirs.norm() < 0.03


def test_generation_goes_on_as_before() -> None:
    model = small()
    quantize(model, "q8_0")
    out = model.generate(ids()[:1], max_new_tokens=5)
    assert isinstance(out, Tensor)
    assert out.shape == (1, 22)


def test_layers_that_do_not_fit_stay() -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=88, num_attention_heads=3, num_hidden_layers=1
    )
    model = LlamaForCausalLM(config)
    assert {choice.format_name for choice in quantize(model, "q4_0")} == {None}
    assert type(model.lm_head) is nn.Linear


def test_choices_touch_nothing() -> None:
    model = small()
    made = choices(model, "q4_0")
    assert made[0] == QuantizationChoice(("model.embed_tokens", "lm_head"), (99, 256), "q6_k")
    assert not is_quantized(model)


def test_dtypes_and_copies_leave_the_weights_alone() -> None:
    model, tokens = small(), ids()
    quantize(model, "q4_1")
    before = head_bytes(model).clone()
    assert model(tokens).logits.dtype == torch.float32
    twin = copy.deepcopy(model)
    assert torch.equal(twin(tokens).logits, model(tokens).logits)
    model.to(torch.bfloat16)
    assert model(tokens).logits.dtype == torch.bfloat16
    assert model.model.embed_tokens(tokens).dtype == torch.bfloat16
    assert torch.equal(head_bytes(model), before)
    assert head_bytes(twin).data_ptr() != before.data_ptr()
    assert head_bytes(model.to("meta")).device.type == "meta"


def test_saving_is_refused(tmp_path: Path) -> None:
    model = small()
    quantize(model, "q4_0")
    with pytest.raises(UnsupportedError, match=r"embed_tokens is quantized to q6_k, .* write a GGUF file"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_is_refused_until_something_learns() -> None:
    model, tokens = small(), ids()
    quantize(model, "q8_0")
    model.train()
    with pytest.raises(UnsupportedError, match="quantized weights cannot be trained: add LoRA adapters"):
        model(tokens, labels=tokens)
    with torch.no_grad():
        model(tokens)
    model.model.norm.weight.requires_grad_(True)
    model(tokens, labels=tokens).loss.backward()
    assert model.model.norm.weight.grad is not None


@pytest.mark.parametrize("name", ["q4_k", "int8"])
def test_gradients_reach_the_input_and_the_bias(name: str) -> None:
    layer = QuantizedLinear(quantize_weight(name, torch.randn(45, 256)), nn.Parameter(torch.randn(45)))
    x = torch.randn(2, 3, 256, requires_grad=True)
    layer(x).square().sum().backward()
    grad = 2 * layer(x).detach()
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert x.grad is not None
    assert torch.allclose(x.grad, grad @ layer.matrix.dequantize(), rtol=1e-4, atol=1e-2)
    assert torch.allclose(layer.bias.grad, grad.sum((0, 1)), rtol=1e-4, atol=1e-3)


def test_quantizing_twice_is_refused() -> None:
    model = small()
    quantize(model, "q8_0")
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(model, "q4_0")


@pytest.mark.parametrize(("is_tied", "name"), [(True, "embed_tokens"), (False, "embed_tokens"), (False, "lm_head")])
def test_the_vocabulary_of_quantized_weights_stays(is_tied: bool, name: str) -> None:
    model = small(is_tied=is_tied)
    quantize(model, {name: "q8_0"})
    with pytest.raises(UnsupportedError, match="keep their vocabulary: resize the model they come from"):
        model.resize_token_embeddings(101)
    assert model.config.vocab_size == 99 and model(ids()).logits.shape[-1] == 99
    assert model.resize_token_embeddings(99) is model.model.embed_tokens


def test_the_vocabulary_beside_quantized_layers_grows() -> None:
    model = small()
    quantize(model, {"mlp.*_proj": "q8_0"})
    model.resize_token_embeddings(101)
    assert model(ids()).logits.shape[-1] == 101


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_weights_that_are_not_finite_are_refused(number: float) -> None:
    model = small()
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 4] = number
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj has weights that are not finite"):
        quantize(model, "q8_0")


def test_an_observer_sees_each_weight_and_what_became_of_it() -> None:
    seen: dict[str, float] = {}

    def observe(choice: QuantizationChoice, weight: Tensor, packed: QuantizedMatrix) -> None:
        seen[choice.names[0]] = ((packed.dequantize() - weight).norm() / weight.norm()).item()

    quantize(small(), "q8_0", observer=observe)
    assert len(seen) == 22
    assert all(0 < error < 0.006 for error in seen.values())


def test_bytes_come_in_and_go_out() -> None:
    raw = FORMATS["q5_k"].quantize(torch.randn(5, 512))
    packed = from_raw("q5_k", raw)
    assert torch.equal(packed.raw(), raw)
    assert packed.nbytes > raw.nbytes  # 16 rows at least
    with pytest.raises(UnsupportedError, match="GGUF has no format for int8"):
        Int8Rows.from_weight(torch.randn(5, 7)).raw()


def test_the_kernels_find_their_streams() -> None:
    model = small()
    quantize(model, {"*.q_proj": "q4_k", "*.k_proj": "int8"})
    streams = {name: layer.kernel_view() for name, layer in quantized_layers(model)}
    first = streams["model.layers.0.self_attn.q_proj"]
    assert first is not None
    assert (first.format_name, first.rows, first.columns) == ("q4_k", 96, 256)
    assert streams["model.layers.0.self_attn.k_proj"] is None
