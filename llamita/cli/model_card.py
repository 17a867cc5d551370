"""The facts of a checkpoint, read from its small files and the headers of the large ones."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llamita.adapters.files import WEIGHTS, read_config
from llamita.checkpoint.gguf import GgufTensors, open_model
from llamita.checkpoint.gguf_names import is_gguf
from llamita.checkpoint.load import find, with_tokens
from llamita.checkpoint.vocabulary import check_vocabulary
from llamita.config import LlamaConfig
from llamita.files.checkpoint import TensorFiles, open_checkpoint
from llamita.files.disk import named_path, read_json
from llamita.files.safetensors import SafetensorsFile
from llamita.model.initial import shapes_only
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer

Weights = TensorFiles | GgufTensors
# Part of the model -> what its parameters' names contain, the first that fits.
PARTS = {
    "embedding": "embed_tokens",
    "attention": "self_attn",
    "feed-forward": ".mlp.",
    "norms": "norm",
    "head": "lm_head",
}


def facts(name: str | None, *, adapter: str | None = None, offline: bool = False) -> dict[str, Any]:
    """What there is to say of a model, in groups, as JSON-like data; its weights stay on the disk.

    adapter: the folder of one, whose facts are a group too.
    """
    folder = find(name, offline=offline)
    if is_gguf(folder):
        config, tokenizer, opened, generation = open_model(folder)
    else:
        config, tokenizer, generation = LlamaConfig.from_pretrained(folder), load_tokenizer(folder), _saved(folder)
        check_vocabulary(tokenizer, config, folder)
        opened = open_checkpoint(folder)
    with opened as tensors:
        with shapes_only():
            model = LlamaForCausalLM(config)
        return {
            "name": name or "cria",
            "folder": str(folder),
            "shape": _shape(config),
            "positions": _positions(config),
            "parameters": {**_parameters(model), "total": model.num_parameters()},
            "weights": _weights(model, tensors),
            "cache": _cache(config, tensors),
            "tokenizer": _tokens(with_tokens(tokenizer, folder)),
            "generation": _defaults(generation),
            **({} if adapter is None else {"adapter": _adapter(named_path(adapter))}),
        }


def _adapter(folder: Path) -> dict[str, Any]:
    config, file = read_config(folder), SafetensorsFile(folder / WEIGHTS)
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    names = config.target_modules
    return {
        "folder": str(folder),
        "kind": kind,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": names if isinstance(names, str) else ", ".join(names),
        "parameters": sum(math.prod(entry.shape) for entry in file.entries.values()),
    }


def _shape(config: LlamaConfig) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "query_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head": config.head_dim,
        "vocabulary": config.vocab_size,
        "activation": config.hidden_act,
        "tied_embeddings": config.tie_word_embeddings,
    }


def _positions(config: LlamaConfig) -> dict[str, Any]:
    return {
        "context": config.max_position_embeddings,
        "sliding_window": config.sliding_window,
        **config.rope_parameters.to_dict(),
    }


def _parameters(model: LlamaForCausalLM) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # a tied head is its twin, and counted with it
        counts[next(part for part, sign in PARTS.items() if sign in name)] += parameter.numel()
    return {part: counts[part] for part in PARTS}


def _weights(model: LlamaForCausalLM, tensors: Weights) -> dict[str, Any]:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in model.tied_weights}
    return {
        "dtype": _storage(tensors) if isinstance(tensors, GgufTensors) else _dtype(model.config, tensors),
        "tensors": len(tensors),
        "files": len(tensors.paths),
        "bytes": sum(path.stat().st_size for path in tensors.paths),
        "missing": [name for name in expected if name not in tensors],
        "misshapen": [name for name in expected if name in tensors and tensors.shape(name) != expected[name]],
    }


def _dtype(config: LlamaConfig, tensors: Weights) -> str:
    if isinstance(tensors, GgufTensors):
        return config.dtype or "float32"
    first = next(iter(tensors), None)
    return str(tensors.dtype(first)).removeprefix("torch.") if first else config.dtype or "float32"


def _storage(tensors: GgufTensors) -> str:
    """How a GGUF file stores its weights, what most of them are first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        counts[tensors.storage(name)] += math.prod(tensors.shape(name))
    return ", ".join(storage for storage, _ in counts.most_common())


def _cache(config: LlamaConfig, tensors: Weights) -> dict[str, Any]:
    size = getattr(torch, _dtype(config, tensors)).itemsize
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    return {"bytes_per_token": token, "bytes_at_full_context": token * config.max_position_embeddings}


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    def spelled(token_id: int | None) -> str | None:
        return None if token_id is None else f"{tokenizer.id_to_token(token_id)} ({token_id})"

    return {
        "size": tokenizer.vocab_size,
        "special": len(tokenizer.special_ids),
        "bos": spelled(tokenizer.bos_token_id),
        "eos": [spelled(token_id) for token_id in tokenizer.eos_token_ids],
        "pad": spelled(tokenizer.pad_token_id),
        "chat_template": tokenizer.chat_template is not None,
    }


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    about_itself = ("_from_model_config", "transformers_version")
    return {name: value for name, value in saved.items() if "token_id" not in name and name not in about_itself}
