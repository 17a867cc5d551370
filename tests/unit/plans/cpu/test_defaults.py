"""torch's default dtype and device are the user's: whatever they are, kernels are given what they read."""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import llamita
from llamita.cache.growing import GrowingCache
from llamita.checkpoint.gguf_save import save_gguf
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse
from llamita.quant.surgery import quantize, quantize_weight
from tests.unit.plans.cpu.models import plain, prompt

DEFAULTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "meta": None}


@pytest.fixture(params=DEFAULTS)
def default(request: pytest.FixtureRequest) -> Iterator[str]:
    """Another default; a test switches it on with `use`."""
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)
    torch.set_default_device(None)


def use(default: str) -> None:
    """Switch a default on."""
    if (dtype := DEFAULTS[default]) is None:
        torch.set_default_device(default)
    else:
        torch.set_default_dtype(dtype)


@cache
def model(dtype: torch.dtype, form: str | None) -> LlamaForCausalLM:
    """A model with biases, and with rotary frequencies that are made from zeros."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    rope = {"rope_type": "proportional", "partial_rotary_factor": 0.5}
    one = plain(dtype, **sizes, attention_bias=True, mlp_bias=True, rope_parameters=rope)
    if form is not None:
        quantize(one, form)
    return one


@torch.no_grad()
def passes(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """A prompt, some tokens, one token; the same with padding; the keys that were stored."""
    outs = []
    for padding in (None, mask):
        cache = GrowingCache()
        for start, stop in ((0, 21), (21, 24), (24, 25)):
            seen = None if padding is None else padding[:, :stop]
            call = {"past_key_values": cache, "attention_mask": seen, "logits_to_keep": 1}
            outs.append(model(ids[:, start:stop], **call).logits)
        outs += [x for layer in cache for x in layer]
    return outs


@pytest.mark.parametrize("form", [None, "q8_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_passes_are_the_same_under_every_default(default: str, dtype: torch.dtype, form: str | None) -> None:
    ids, mask = prompt(2, 25), torch.ones(2, 25, dtype=torch.long)
    mask[1, :4] = 0
    wanted = passes(fuse(deepcopy(model(dtype, form))), ids, mask)
    fused = fuse(deepcopy(model(dtype, form)))
    use(default)
    for got, expected in zip(passes(fused, ids, mask), wanted, strict=True):
        assert (got.dtype, got.device) == (expected.dtype, expected.device) and torch.equal(got, expected)


def test_what_a_quantized_layer_gives_is_the_same(default: str) -> None:
    layer, x = model(torch.float32, "q8_0").model.layers[0].mlp.up_proj, torch.randn(3, 64)  # pyright: ignore
    with torch.no_grad():
        wanted = layer(x)
        use(default)
        got = layer(x)
    assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_quantized_is_the_same(default: str, form: str) -> None:
    weight = torch.randn(32, 256)
    wanted = quantize_weight(form, weight).raw()
    use(default)
    got = quantize_weight(form, weight).raw()
    assert got.device == wanted.device and torch.equal(got, wanted)


WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0, "num_beams": 2},
    {"temperature": 0.8, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "logit_bias": {65: 1.0}, "logprobs": 2},
    {"choice": ["yes", "no"]},
    {"heal": True, "prompt_logprobs": 1},
]
FLAGS: list[dict[str, Any]] = [
    {"mirostat": 2, "do_sample": True, "seed": 2},
    {"xtc_probability": 0.5, "do_sample": True, "seed": 2},
    {"dry_multiplier": 1.0},
    {"watermarking_config": {"bias": 2.0}},
    {"num_beams": 2, "cache_implementation": "static"},
    {"assistant_early_exit": 1, "do_sample": True, "seed": 3},
]


def written(path: Path) -> list[Any]:
    """What a model that is loaded now writes, in many ways."""
    llm = llamita.load(path)
    texts: list[Any] = [llm.generate("abc", max_tokens=5, seed=3, **way) for way in WAYS]
    texts += llm.generate(["abc", "de"], max_tokens=5, seed=3)
    ids = torch.tensor([[256, 65, 66]], device="cpu")
    found = [(one.token_ids, one.text, one.logprobs, one.prompt_logprobs) for one in texts]
    return [*found, *(llm.model.generate(ids, max_new_tokens=6, **flags).tolist() for flags in FLAGS)]  # type: ignore[union-attr]


def test_texts_are_the_same(default: str, small_path: Path) -> None:
    wanted = written(small_path)
    use(default)
    for got, expected in zip(written(small_path), wanted, strict=True):
        assert got == expected


def test_a_gguf_file_is_read_the_same(default: str, small_path: Path, tmp_path: Path) -> None:
    small = llamita.load(small_path, kernels="off")
    path = save_gguf(small.model, small.tokenizer, tmp_path / "small.gguf", "q8_0")
    wanted = llamita.load(path).generate("abc", max_tokens=5, seed=3)
    use(default)
    found = llamita.load(path).generate("abc", max_tokens=5, seed=3)
    assert (found.token_ids, found.logprobs) == (wanted.token_ids, wanted.logprobs)
