"""A model on the GPU's kernels, here on their references: the same text, and nothing that a CUDA graph cannot hold."""

from typing import Any

import pytest
import torch
from torch import nn

from llamita.cache.dynamic import DynamicCache
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cuda import layers as gpu
from llamita.quant.block_matrix import GpuBlocks
from llamita.quant.linear import QuantizedLinear


@pytest.fixture(params=["plain", "biased, tied, windowed"])
def config(request: pytest.FixtureRequest, tiny_config: LlamaConfig) -> LlamaConfig:
    more: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "sliding_window": 6}
    return tiny_config.replace(initializer_range=0.2, **(more if request.param != "plain" else {}))


def models(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The same weights twice, the second with the kernels."""
    model = LlamaForCausalLM(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    twin = LlamaForCausalLM(config).to(dtype).eval()
    twin.load_state_dict(model.state_dict())
    gpu.install(twin)
    return model, twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_writes_what_the_model_writes(config: LlamaConfig, dtype: torch.dtype) -> None:
    model, twin = models(config, dtype)
    cache, theirs = gpu.KernelCache(config, batch=2, capacity=24, dtype=dtype), DynamicCache()
    step = gpu.KernelStep(twin, cache)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    for tokens in torch.randint(0, 97, (2, 23)).split((18, 1, 1, 2, 1), dim=1):  # more and fewer than 16 rows
        expected = model(tokens, past_key_values=theirs).logits[:, -1]
        torch.testing.assert_close(step(tokens), expected, **close)
    assert cache.length == 23
    for layer, (keys, values) in enumerate(cache):
        torch.testing.assert_close(keys, theirs.keys[layer], **close)
        torch.testing.assert_close(values, theirs.values[layer], **close)


@torch.no_grad()
def test_the_familiar_forward_still_works(config: LlamaConfig) -> None:
    model, twin = models(config)
    tokens = torch.randint(0, 97, (2, 7))
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    torch.testing.assert_close(twin(tokens, padding).logits, model(tokens, padding).logits, atol=1e-4, rtol=1e-4)


def test_projections_of_one_input_become_one_product(tiny_config: LlamaConfig) -> None:
    _, twin = models(tiny_config)
    layer = twin.model.layers[0]
    assert isinstance(layer, gpu.KernelLayer) and isinstance(layer.qkv_proj, gpu.FewRowsLinear)
    assert layer.qkv_proj.out_features == (6 + 2 + 2) * 10


def test_a_tied_head_keeps_its_parameter(tiny_config: LlamaConfig) -> None:
    _, twin = models(tiny_config.replace(tie_word_embeddings=True))
    assert twin.lm_head.weight is twin.model.embed_tokens.weight


def quantized(form: str, rows: int, *, biased: bool) -> QuantizedLinear:
    """A layer as it lies on a GPU."""
    block = FORMATS[form]
    codes = block.codes(block.quantize(torch.randn(rows, 256)))
    return QuantizedLinear(GpuBlocks.of(codes, form), nn.Parameter(torch.randn(rows)) if biased else None)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_quantized_layers_of_one_format_become_one_product(biased: bool, rows: int) -> None:
    layers = [quantized("q4_k", out, biased=biased) for out in (7, 4)]
    product, x = gpu.merged(layers), torch.randn(rows, 256)
    assert isinstance(product, gpu.BlocksLinear)
    torch.testing.assert_close(product(x), torch.cat([layer(x) for layer in layers], -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [2, 20])
@torch.no_grad()
def test_a_product_takes_biases_of_another_dtype(rows: int) -> None:
    layers = [quantized("q4_k", out, biased=True) for out in (7, 4)]
    x = torch.randn(rows, 256, dtype=torch.bfloat16)
    assert torch.equal(gpu.merged(layers)(x), torch.cat([layer(x) for layer in layers], -1))


@torch.no_grad()
def test_layers_of_different_formats_stay_apart() -> None:
    layers = [quantized("q4_k", 7, biased=False), quantized("q6_k", 4, biased=False), nn.Linear(256, 5)]
    product, x = gpu.merged(layers), torch.randn(2, 256)
    assert isinstance(product, gpu.ConcatLinear)
    assert torch.equal(product(x), torch.cat([layer(x) for layer in layers], -1))


def test_a_step_reads_nothing_back_from_the_device(config: LlamaConfig) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        gpu.install(model)
        step = gpu.KernelStep(model, gpu.KernelCache(config, batch=2, capacity=9, device="meta"))
        with torch.no_grad():
            assert step(torch.zeros(2, 1, dtype=torch.long)).shape == (2, 97)


@torch.no_grad()
def test_compiles_without_a_break(tiny_config: LlamaConfig) -> None:
    _, twin = models(tiny_config)
    caches = [gpu.KernelCache(tiny_config, batch=1, capacity=9) for _ in range(2)]
    plain, compiled = (gpu.KernelStep(twin, cache) for cache in caches)
    fast = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for token in (3, 5, 7):
        tokens = torch.tensor([[token]])
        torch.testing.assert_close(fast(tokens), plain(tokens))


def test_refusals_are_one_sentence(tiny_config: LlamaConfig) -> None:
    with pytest.raises(UnsupportedError, match="run on a GPU, not on cpu"):
        gpu.accelerate(LlamaForCausalLM(tiny_config))
    with pytest.raises(UnsupportedError, match="with SiLU alone"):
        gpu.install(LlamaForCausalLM(tiny_config.replace(hidden_act="gelu")))
    model = LlamaForCausalLM(tiny_config)
    gpu.install(model)
    with pytest.raises(UnsupportedError, match="a KernelLayer is no plain Llama layer"):
        gpu.install(model)
    dynamic = LlamaForCausalLM(tiny_config.replace(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))
    with pytest.raises(UnsupportedError, match='rotary type "dynamic" rotates stored keys again'):
        gpu.KernelStep(dynamic, gpu.KernelCache(dynamic.config, batch=1, capacity=4))


@torch.no_grad()
def test_a_full_cache_is_refused(tiny_config: LlamaConfig) -> None:
    _, twin = models(tiny_config)
    step = gpu.KernelStep(twin, gpu.KernelCache(tiny_config, batch=1, capacity=4))
    with pytest.raises(ValueError, match="do not fit a StaticCache of 4"):
        step(torch.zeros(1, 5, dtype=torch.long))
