"""transformers' Llama with our weights, or from the same files: what ours is compared with."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError
from llamita.model.llama import LlamaForCausalLM

BACKEND_NAMES = {"flex": "flex_attention"}


def library() -> ModuleType:
    """transformers itself; raises UnsupportedError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UnsupportedError("transformers is not installed: pip install 'llamita[bridge]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def twin(model: LlamaForCausalLM) -> Any:
    """transformers' LlamaForCausalLM with our model's config, backend, dtype, mode and (shared) weights."""
    peer = library().LlamaForCausalLM(config_of(model.config))
    peer = peer.to(dtype=model.dtype, device=model.device)
    # `.to(bfloat16)` rounds transformers' frequencies, which its from_pretrained(dtype=...) keeps in fp32.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config).to(model.device)
    peer.load_state_dict(model.state_dict())
    return peer.train(model.training)


def config_of(config: LlamaConfig) -> Any:
    """transformers' config object for ours."""
    values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    name = BACKEND_NAMES.get(config.attn_implementation, config.attn_implementation)
    return library().LlamaConfig(**values, attn_implementation=name)


def load(folder: Path, *, dtype: torch.dtype, attn_implementation: str) -> Any:
    """transformers' model of a checkpoint folder, in eval mode."""
    name = BACKEND_NAMES.get(attn_implementation, attn_implementation)
    return library().LlamaForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=name).eval()
