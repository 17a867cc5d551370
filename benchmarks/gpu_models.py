"""Whole models of random weights on a GPU: tokens per second, ours in several forms and transformers'."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_kernels import random_planes
from benchmarks.gpu_page import DEVICE, Bench, elapsed
from llamita.bridge import transformers as bridge
from llamita.cache.static import StaticCache
from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cuda.graphs import DecodeGraph, PlainStep, Step
from llamita.plans.cuda.layers import BlocksLinear, KernelCache, KernelStep, install
from llamita.presets import PRESETS

PROMPT, NEW, CAPACITY = 512, 64, 1024
SHAPES = {"1b": PRESETS["llama-3.2-1b"], "8b": PRESETS["llama-3.1-8b"]}


def random_model(config: LlamaConfig) -> LlamaForCausalLM:
    """A model of random bf16 weights, made on the GPU."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    model = model.to_empty(device=DEVICE).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def quantize_at_random(model: LlamaForCausalLM, form: str) -> None:
    """Put random quantized matrices in the place of an installed model's, the head's too; the embedding stays."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if hasattr(child, "out_features"):
                setattr(owner, name, nn.Module())  # the old weights go before the new ones come
                rows, columns = child.out_features, child.in_features
                assert isinstance(rows, int)
                assert isinstance(columns, int)
                del child
                setattr(owner, name, BlocksLinear([random_planes(form, rows, columns)], [None]))


def bytes_of(model: LlamaForCausalLM) -> int:
    """Bytes that one decode step reads: every matrix, the head's and no more of the embedding than a row."""
    planes = sum(module.planes.nbytes for module in model.modules() if isinstance(module, BlocksLinear))
    matrices = {p.data_ptr(): p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name}
    head = getattr(model.lm_head, "weight", None)
    if isinstance(head, Tensor):
        matrices[head.data_ptr()] = head.nbytes
    return planes + sum(matrices.values())


@torch.no_grad()
def speed(step: Step, cache: StaticCache, tokens: int = NEW) -> list[float]:
    """Tokens per second of greedy decoding behind a prompt, three times."""
    rates = []
    for turn in range(4):
        cache.reset()
        token = torch.ones(1, 1, dtype=torch.long, device=DEVICE)
        for _ in range(3):
            token = step(token).argmax(-1, keepdim=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(tokens):
            token = step(token).argmax(-1, keepdim=True)
        torch.cuda.synchronize()
        if turn:
            rates.append(tokens / (time.perf_counter() - start))
    return rates


@torch.no_grad()
def prefill(model: Any, vocabulary: int) -> list[float]:
    """Prompt tokens per second."""
    prompt = torch.randint(0, vocabulary, (1, PROMPT), device=DEVICE)
    seconds = [elapsed(lambda: model(prompt, use_cache=False, logits_to_keep=1)) for _ in range(6)]
    return [PROMPT / one for one in seconds[2:]]


class TransformersStep:
    """transformers' model over its own growing cache."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.past: Any = None

    def reset(self) -> None:
        """Forget the text."""
        self.past = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (1, 1) -> logits (1, V)."""
        out = self.peer(tokens, past_key_values=self.past, use_cache=True)
        self.past = out.past_key_values
        return out.logits[:, -1]


def cache_of(kind: type[StaticCache], config: LlamaConfig) -> Any:
    """An empty cache of the bench's capacity."""
    return kind(config, batch=1, capacity=CAPACITY, dtype=torch.bfloat16, device=DEVICE)


def measure_plain(bench: Bench, shape: str, model: LlamaForCausalLM) -> None:
    """The model as it is, eager, as a CUDA graph and compiled."""
    config, limit = model.config, bench.bandwidth / bytes_of(model)
    head = model.lm_head.weight.nbytes  # of the last token alone
    flops = bytes_of(model) - head  # a token: two for each weight, and each weight has two bytes
    with bench.part(f"{shape} bf16 prompt", 10) as has_time:
        if has_time:
            bench.add(f"pp{PROMPT}", shape, "bf16", "llamita", prefill(model, config.vocab_size), "tok/s",
                      limit=bench.products / flops)  # fmt: skip
    for name, build in (
        ("llamita, eager", lambda step, cache: step),
        ("llamita, CUDA graph", DecodeGraph),
        ("llamita, torch.compile", lambda step, cache: torch.compile(step, mode="reduce-overhead", fullgraph=True)),
    ):
        with bench.part(f"{shape} bf16 {name}", 90 if "compile" in name else 15) as has_time:
            if has_time:
                cache = cache_of(StaticCache, config)
                rates = speed(build(PlainStep(model, cache), cache), cache)
                bench.add(f"tg{NEW}", shape, "bf16", name, rates, "tok/s", limit=limit)


def measure_transformers(bench: Bench, shape: str, model: LlamaForCausalLM) -> None:
    """transformers with the same weights."""
    with bench.part(f"{shape} transformers", 40) as has_time:
        if has_time:
            with torch.device(DEVICE):
                peer = bridge.twin(model)
            step: Any = TransformersStep(peer)
            bench.add(f"tg{NEW}", shape, "bf16", "transformers", speed(step, step), "tok/s",
                      limit=bench.bandwidth / bytes_of(model))  # fmt: skip
            bench.add(f"pp{PROMPT}", shape, "bf16", "transformers", prefill(peer, model.config.vocab_size), "tok/s")


def measure_kernels(bench: Bench, shape: str, model: LlamaForCausalLM) -> None:
    """The model on our kernels, eager and as a CUDA graph, in bf16 and in each quantized format."""
    install(model)
    for form in ("bf16", "q8_0", "q4_k"):
        with bench.part(f"{shape} {form} kernels", 25) as has_time:
            if not has_time:
                continue
            if form != "bf16":
                quantize_at_random(model, form)
            limit = bench.bandwidth / bytes_of(model)
            for name, build in (("llamita kernels, eager", None), ("llamita kernels, CUDA graph", DecodeGraph)):
                cache = cache_of(KernelCache, model.config)
                step: Any = KernelStep(model, cache)
                rates = speed(build(step, cache) if build else step, cache)
                bench.add(f"tg{NEW}", shape, form, name, rates, "tok/s", limit=limit)
            if form != "bf16":
                bench.add(
                    f"pp{PROMPT}", shape, form, "llamita kernels", prefill(model, model.config.vocab_size), "tok/s"
                )


def measure_models(bench: Bench) -> None:
    """Whole models, the small one first."""
    for shape, config in SHAPES.items():
        with bench.part(shape, 40) as has_time:
            if has_time:
                model = random_model(config)
                measure_plain(bench, shape, model)
                if shape == "1b":
                    measure_transformers(bench, shape, model)
                measure_kernels(bench, shape, model)
                del model
