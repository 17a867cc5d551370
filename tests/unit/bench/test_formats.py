"""The bytes and operations that shares are told of, counted another way."""

import pytest
import torch

from llamita.bench import models
from llamita.bench.formats import cache_bytes, named_formats, prompt_operations, weights
from llamita.bench.shapes import SHAPES
from llamita.errors import UsageError
from llamita.quant.surgery import quantize_weight, quantized_layers
from tests.small import CONFIG


def test_bytes_of_floats_are_those_of_the_matrices() -> None:
    model = models.build("tiny", "bf16")
    held = sum(weight.nbytes for weight in model.parameters() if weight.ndim == 2)
    counted = weights(SHAPES["tiny"], "bf16")
    assert counted.held == held
    assert counted.read == held - model.model.embed_tokens.weight.nbytes


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_k"])
def test_bytes_of_blocks_are_those_that_a_file_holds(format: str) -> None:
    layers = dict(quantized_layers(models.build("tiny", format)))
    sizes = {name: layer.matrix.raw().nbytes for name, layer in layers.items()}
    counted = weights(SHAPES["tiny"], format)
    assert counted.held == sum(sizes.values())
    assert counted.read == counted.held - sizes["model.embed_tokens"]


def test_a_tied_embedding_is_read_whole_and_held_once() -> None:
    counted = weights(CONFIG, "fp16")
    assert CONFIG.tie_word_embeddings and counted.read == counted.held


def test_operations_of_a_prompt_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = models.build("tiny", "fp32"), 8
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(tokens)[None], logits_to_keep=1)
    config = SHAPES["tiny"]
    width = config.num_attention_heads * config.head_dim
    masked = 4 * config.num_hidden_layers * width * tokens * (tokens - 1) / 2  # eager computes what the mask hides
    assert prompt_operations(config, tokens) == counter.get_total_flops() - masked


def test_cache_bytes() -> None:
    numbers = 4 * 2 * (2 * 16)  # layers, keys and values, heads
    assert cache_bytes(CONFIG, 3) == 3 * 2 * numbers


def test_random_layers_are_alike_and_lie_apart() -> None:
    model = models.build("tiny", "q8_0")
    first, second = (layer.mlp.up_proj.matrix for layer in model.model.layers)
    assert torch.equal(first.dequantize(), second.dequantize())
    assert first.packed.stream.data_ptr() != second.packed.stream.data_ptr()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]


@pytest.mark.parametrize("format", ["q8_0", "int8"])
def test_rows_that_repeat_are_quantized_as_all_rows_would_be(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ROWS", 200)  # 512 are wanted
    plain = models.build("tiny", "bf16").lm_head.weight
    assert torch.equal(plain[200:400], plain[:200]) and torch.equal(plain[400:], plain[:112])
    quantized = models.build("tiny", format).lm_head.matrix
    assert torch.equal(quantized.dequantize(), quantize_weight(format, plain).dequantize())


def test_unknown_formats() -> None:
    assert named_formats("bf16, Q4_K") == ["bf16", "q4_k"]
    with pytest.raises(UsageError, match="know the format 'q9'"):
        named_formats("q9")
    with pytest.raises(UsageError, match="is empty"):
        named_formats(",")
