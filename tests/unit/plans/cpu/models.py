"""Small models, plain and fused, that differ in one thing at a time."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
}  # fmt: skip


def plain(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """A model whose likeliest tokens stand out, biases and norms included, so that rounding decides nothing."""
    sizes = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 88, "num_attention_heads": 6, "head_dim": 16,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model.to(dtype)


def twins(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model in fp32, and the same weights in a dtype, fused."""
    model = plain(dtype, **changes)
    return deepcopy(model).float(), fuse(model)


def write(model: LlamaForCausalLM, ids: Tensor, **flags: Any) -> Tensor:
    """What a model writes behind ids, greedily."""
    return model.generate(
        ids, **{"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1, **flags}
    )


def prompt(batch: int = 1, tokens: int = 11) -> Tensor:
    """Random ids, none of them 0."""
    return torch.randint(1, 97, (batch, tokens))
