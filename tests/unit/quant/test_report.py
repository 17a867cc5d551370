"""What quantizing costs, counted."""

import math
from pathlib import Path

import pytest
import torch

import llamita
from llamita.checkpoint.load import load_pretrained
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.report import bytes_of, layer_inputs, perplexity_of, quantize_and_count, relative_error, windows


@pytest.fixture
def model(small_path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(small_path)


DOCUMENTS = [[256, 72, 101, 108, 108, 111], [256, 119, 111, 114, 108, 100, 33], [256]]


def test_perplexity_is_that_of_the_losses(model: LlamaForCausalLM) -> None:
    losses = []
    for document in DOCUMENTS[:2]:
        ids = torch.tensor([document])
        losses += [model(ids, labels=ids).loss.item()] * (len(document) - 1)
    assert perplexity_of(model, DOCUMENTS) == pytest.approx(math.exp(sum(losses) / len(losses)))
    assert math.isnan(perplexity_of(model, [[256]]))


def test_inputs_are_what_the_layers_are_given(model: LlamaForCausalLM) -> None:
    inputs = layer_inputs(model, DOCUMENTS[:1])
    states = model(torch.tensor(DOCUMENTS[:1]), output_hidden_states=True).hidden_states
    assert torch.equal(inputs["lm_head"], states[-1][0, ::4])
    assert inputs["model.layers.1.mlp.down_proj"].shape == (2, 176)


def test_bytes_are_counted(model: LlamaForCausalLM) -> None:
    before = sum(parameter.nbytes for parameter in model.parameters())
    cost = quantize_and_count(model, "q8_0", DOCUMENTS)
    assert cost.bytes_before == before
    shapes = [layer.shape for layer in cost.layers if layer.format_name]
    saved = sum(rows * columns * 4 - rows * columns * 34 // 32 for rows, columns in shapes)
    assert cost.bytes_after == before - saved
    assert cost.by_format["q8_0"] == (25, sum(bytes_of("q8_0", shape) for shape in shapes))
    assert cost.by_format["unchanged"][0] == 4
    assert bytes_of("int8", (3, 40)) == 3 * 44


def test_errors_are_relative_and_small(model: LlamaForCausalLM) -> None:
    cost = quantize_and_count(model, "q8_0", DOCUMENTS)
    changed = [layer for layer in cost.layers if layer.format_name]
    assert all(0 < layer.weight_error < 0.006 for layer in changed)
    assert all(layer.output_error is not None and 0 < layer.output_error < 0.02 for layer in changed)
    assert cost.perplexity_change is not None
    assert abs(cost.perplexity_change) < 0.01


def test_without_a_text_nothing_is_said_of_it(model: LlamaForCausalLM) -> None:
    cost = quantize_and_count(model, "q4_0")
    assert cost.perplexity_after is None
    assert cost.perplexity_change is None
    assert {layer.output_error for layer in cost.layers} <= {None}


def test_relative_errors() -> None:
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf


def test_windows_each_begin_as_a_text_does() -> None:
    assert windows(range(5), length=3, first=9) == [[9, 0, 1], [9, 2, 3], [9, 4]]
    assert windows(range(5), length=3, first=None) == [[0, 1, 2], [3, 4]]


def test_more_bits_are_nearer_to_cria() -> None:
    """On unseen text, which is what they are for."""
    text = (Path(llamita.__file__).parent / "cria" / "held_out.txt").read_text(encoding="utf-8")
    changes = {}
    for recipe in ("q8_0", "q4_k_m", "q4_0"):
        loaded = load_pretrained(dtype="float32")
        ids = [loaded.tokenizer.encode(document, add_special_tokens=False) for document in text.split("\f")[:8]]
        first = loaded.tokenizer.bos_token_id
        documents = [window for one in ids for window in windows(one, length=512, first=first)]
        changes[recipe] = quantize_and_count(loaded.model, recipe, documents).perplexity_change
    assert abs(changes["q8_0"]) < 0.002
    assert abs(changes["q8_0"]) < min(changes["q4_k_m"], changes["q4_0"])
    assert max(changes["q4_k_m"], changes["q4_0"]) < 0.015
