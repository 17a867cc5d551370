"""Decode steps as CUDA graphs: the tokens of a graph are those of the model without one."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.cache.static import StaticCache
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.kernels.cuda.planes import Planes
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cuda.graphs import DecodeGraph, PlainStep, Step
from llamita.plans.cuda.layers import BlocksLinear, KernelCache, KernelStep, accelerate
from llamita.quant.surgery import quantize

pytestmark = pytest.mark.gpu

CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, initializer_range=0.1,
)  # fmt: skip
PROMPT, NEW = 11, 20


def greedy(step: Step, prompt: Tensor, new: int) -> list[int]:
    """The tokens that a step chooses after a prompt (1, T), read token by token."""
    for token in prompt.split(1, dim=1):
        logits = step(token)
    tokens: list[int] = []
    for _ in range(new):
        tokens.append(int(logits.argmax(-1)))
        logits = step(torch.tensor([tokens[-1:]], device=prompt.device))
    return tokens


def model_of(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).to("cuda", dtype).eval()


def caches(kind: Any, dtype: torch.dtype) -> list[Any]:
    return [kind(CONFIG, batch=1, capacity=PROMPT + NEW, dtype=dtype, device="cuda") for _ in range(2)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_graph_of_the_plain_model(name: str) -> None:
    model = model_of(torch.float32)
    model.set_attn_implementation(name)
    plain, recorded = caches(StaticCache, torch.float32)
    prompt = torch.randint(0, 512, (1, PROMPT), device="cuda")
    expected = greedy(PlainStep(model, plain), prompt, NEW)
    graph = DecodeGraph(PlainStep(model, recorded), recorded)
    assert greedy(graph, prompt, NEW) == expected
    assert recorded.length == PROMPT + NEW
    with pytest.raises(UsageError, match="do not fit"):
        graph(prompt[:, :1])


@torch.no_grad()
def test_a_graph_of_the_kernels_writes_what_the_plain_model_writes() -> None:
    model, twin = model_of(torch.float32), model_of(torch.float32)
    accelerate(twin)
    (plain,), (cache, recorded) = caches(StaticCache, torch.float32)[:1], caches(KernelCache, torch.float32)
    prompt = torch.randint(0, 512, (1, PROMPT), device="cuda")
    expected = greedy(PlainStep(model, plain), prompt, NEW)
    assert greedy(KernelStep(twin, cache), prompt, NEW) == expected
    assert greedy(DecodeGraph(KernelStep(twin, recorded), recorded), prompt, NEW) == expected
    for ours, theirs in zip(recorded.keys, plain.keys, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_k"])
def test_a_graph_of_a_quantized_model(form: str) -> None:
    model = model_of(torch.bfloat16)
    quantize(model, form)
    prompt = torch.randint(0, 512, (1, PROMPT), device="cuda")
    (plain,), (cache, recorded) = caches(StaticCache, torch.bfloat16)[:1], caches(KernelCache, torch.bfloat16)
    expected = PlainStep(model, plain)(prompt)
    accelerate(model)
    kinds = {type(module) for module in model.modules()}
    assert BlocksLinear in kinds and any(isinstance(getattr(m, "planes", None), Planes) for m in model.modules())
    out = KernelStep(model, cache)(prompt)
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    cache.crop(0)
    assert greedy(DecodeGraph(KernelStep(model, recorded), recorded), prompt, NEW) == greedy(
        KernelStep(model, cache), prompt, NEW
    )


def test_what_waits_for_the_device_is_refused_in_one_sentence() -> None:
    """In a process of its own: a recording that fails may leave the device's state behind."""
    code = """
import torch
from llamita.errors import UnsupportedError
from llamita.plans.cuda.graphs import CudaRecorder
x = torch.ones(3, device="cuda")
try:
    CudaRecorder().record(lambda: x * x.sum().item())
except UnsupportedError as error:
    assert str(error).startswith("this step cannot be a CUDA graph") and "\\n" not in str(error), error
else:
    raise AssertionError("recorded")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
