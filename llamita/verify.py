"""Is every number that ours computes the number that transformers computes? Down to the first module that differs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamita.bridge import transformers as peers
from llamita.checkpoint.load import check_weights
from llamita.config import LlamaConfig, RopeConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.model.module_outputs import first_difference, largest, outputs_of

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(7)],
        "long_factor": [2.0 + 0.3 * i for i in range(7)],
        "factor": 2.0,
        "original_max_position_embeddings": 17,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
}
HEADS = {"MHA": 6, "GQA": 2, "MQA": 1}  # key/value heads of 6
PADDINGS = ("none", "right", "left")
DTYPES = ("float32", "bfloat16")
BACKENDS = ("eager", "sdpa")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One small random model and one way of running it. All sizes differ, so that no swapped axis can hide."""

    rope: str = "default"
    heads: str = "GQA"
    padding: str = "none"
    bias: bool = False
    cached: bool = False
    dtype: str = "float32"
    backend: str = "sdpa"
    seed: int = 0

    def __str__(self) -> str:
        parts = (self.dtype, self.backend, self.rope, self.heads, f"pad {self.padding}")
        return " ".join((*parts, "cached" if self.cached else "uncached", "biases" if self.bias else "no biases"))

    def config(self) -> LlamaConfig:
        """Six heads of 14 on a width of 60, three layers, and rotary types that switch at 17 tokens."""
        return LlamaConfig(
            vocab_size=101,
            hidden_size=60,
            intermediate_size=74,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=HEADS[self.heads],
            head_dim=14,
            max_position_embeddings=17,
            rope_parameters=RopeConfig.from_dict({"rope_type": self.rope, **ROPES[self.rope]}),
            attention_bias=self.bias,
            mlp_bias=self.bias,
            attn_implementation=self.backend,
            dtype=self.dtype,
        )

    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """Token ids (4, T) and their mask, None without padding. Cached runs stay below the rotary switch."""
        length = 16 if self.cached else 23
        tokens = torch.randint(0, 101, (4, length), generator=torch.Generator().manual_seed(self.seed + 1))
        if self.padding == "none":
            return tokens, None
        mask = torch.ones_like(tokens)
        for row, missing in enumerate((0, 3, 1, 5)):
            where = slice(0, missing) if self.padding == "left" else slice(length - missing, length)
            mask[row, where] = 0
        return tokens, mask


def grid(**fixed: Any) -> Iterator[Case]:
    """Every combination of rotary type, head grouping, padding, cache, biases, dtype and backend."""
    axes = {
        "dtype": DTYPES,
        "backend": BACKENDS,
        "rope": tuple(ROPES),
        "heads": tuple(HEADS),
        "padding": PADDINGS,
        "cached": (False, True),
        "bias": (False, True),
    }
    axes |= {name: (value,) for name, value in fixed.items()}
    for values in product(*axes.values()):
        yield Case(**dict(zip(axes, values, strict=True)))


def random_model(case: Case) -> LlamaForCausalLM:
    """A model whose weights, biases and norms are all random: a 0 or a 1 would hide errors."""
    model = LlamaForCausalLM(case.config()).to(getattr(torch, case.dtype))
    generator = torch.Generator().manual_seed(case.seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (1 + 0.3 * noise if "norm" in name else 0.3 * noise).to(parameter.dtype)
    return model.eval()


def difference(case: Case) -> dict[str, float]:
    """The largest absolute difference from transformers in each kind of number that the case computes."""
    ours, theirs = _pair(replace(case, padding="none", cached=False))
    for model in (ours, theirs):
        model.zero_grad()
    tokens, mask = case.inputs()
    if case.cached:
        return _cached_difference(ours, theirs, tokens, mask)
    return _whole_difference(ours, theirs, tokens, mask)


@lru_cache(maxsize=2)
def _pair(case: Case) -> tuple[LlamaForCausalLM, Any]:
    """Both models of a case, which are the same for every padding and with a cache or without."""
    ours = random_model(case)
    return ours, peers.twin(ours)


def _whole_difference(ours: nn.Module, theirs: nn.Module, tokens: Tensor, mask: Tensor | None) -> dict[str, float]:
    labels = tokens if mask is None else tokens.masked_fill(mask == 0, -100)
    call = {"attention_mask": mask, "labels": labels, "use_cache": False, "output_hidden_states": True}
    a = ours(tokens, **call)
    b = theirs(tokens, **call, position_ids=positions_from(mask))
    a.loss.backward()
    b.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    return {
        "logits": largest(a.logits, b.logits),
        "hidden": max(map(largest, a.hidden_states, b.hidden_states)),
        "loss": largest(a.loss, b.loss),
        "gradients": max(largest(p.grad, gradients[name]) for name, p in ours.named_parameters()),
    }


@torch.no_grad()
def _cached_difference(ours: nn.Module, theirs: nn.Module, tokens: Tensor, mask: Tensor | None) -> dict[str, float]:
    """A prefill of 9, a chunk of 5, then token by token."""
    positions = positions_from(mask)
    cache_a = cache_b = None
    found = {"logits": 0.0, "hidden": 0.0}
    for start, stop in ((0, 9), (9, 14), *((i, i + 1) for i in range(14, tokens.shape[1]))):
        call = {"attention_mask": None if mask is None else mask[:, :stop], "use_cache": True}
        call |= {"output_hidden_states": True}
        where = None if positions is None else positions[:, start:stop]
        a = ours(tokens[:, start:stop], past_key_values=cache_a, **call)
        b = theirs(tokens[:, start:stop], past_key_values=cache_b, position_ids=where, **call)
        cache_a, cache_b = a.past_key_values, b.past_key_values
        found["logits"] = max(found["logits"], largest(a.logits, b.logits))
        found["hidden"] = max(found["hidden"], *map(largest, a.hidden_states, b.hidden_states))
    return found


def positions_from(mask: Tensor | None) -> Tensor | None:
    """The positions that ours reads from a mask (B, T), for transformers' forward, which does not look at it."""
    return None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run of a checkpoint in both: the largest difference of the logits, and the first module that differs."""

    dtype: str
    backend: str
    run: str
    difference: float
    first: str | None
    first_difference: float


def compare(folder: Path, *, length: int = 33, seed: int = 0) -> Iterator[Comparison]:
    """Run a checkpoint folder here and in transformers, on the same random tokens, over dtypes and backends."""
    check_weights(folder, LlamaConfig.from_pretrained(folder))  # both would start the missing ones random
    for dtype, backend in product(DTYPES, BACKENDS):
        ours = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, device="cpu", attn_implementation=backend)
        theirs = peers.load(folder, dtype=getattr(torch, dtype), attn_implementation=backend)
        length = min(length, ours.config.max_position_embeddings)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, ours.config.vocab_size, (2, length), generator=generator)
        mask = torch.ones_like(tokens)
        mask[1, : length // 4] = 0
        yield compared(ours, theirs, tokens, None, dtype=dtype, backend=backend, run="whole")
        yield compared(ours, theirs, tokens, mask, dtype=dtype, backend=backend, run="left padding")


@torch.no_grad()
def compared(
    ours: nn.Module, theirs: nn.Module, tokens: Tensor, mask: Tensor | None, *, dtype: str, backend: str, run: str
) -> Comparison:
    """Run both on tokens (B, T) with a mask (B, T) and look for the first module whose output differs."""
    with outputs_of(ours) as a, outputs_of(theirs) as b:
        logits = ours(tokens, attention_mask=mask, use_cache=False).logits
        peer_logits = theirs(tokens, attention_mask=mask, position_ids=positions_from(mask), use_cache=False).logits
    # In the order in which ours ran: the first that differs is where the paths part.
    first, gap = first_difference(a, b)
    return Comparison(
        dtype=dtype,
        backend=backend,
        run=run,
        difference=largest(logits, peer_logits),
        first=first,
        first_difference=gap,
    )
