"""The models that take part: ours, and other libraries' with the same weights."""

from collections.abc import Callable
from typing import Any

import torch

from llamita.bridge import transformers as transformers_bridge
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM


def ours(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """Our model with random weights, the same at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def transformers(config: LlamaConfig, dtype: torch.dtype) -> Any:
    """transformers' model with the weights of ours."""
    return transformers_bridge.twin(ours(config, dtype))


SYSTEMS: dict[str, Callable[[LlamaConfig, torch.dtype], Any]] = {"llamita": ours, "transformers": transformers}


def named(systems: str) -> list[str]:
    """Ours and those of a comma-separated list; raises UsageError for an unknown name."""
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise UsageError(f"{unknown[0]!r} is no system to compare with: use one of {', '.join(SYSTEMS)}")
    return ["llamita", *(name for name in names if name != "llamita")]
