"""A Llama's config as GGUF metadata, and back."""

from collections.abc import Mapping
from typing import Any

import torch

from llamita.checkpoint.gguf_names import FREQUENCY_FACTORS
from llamita.checkpoint.gguf_rope import rope_from_gguf, rope_to_gguf, shortest
from llamita.checks import MAX_REASON, quoted, shortened
from llamita.config import LlamaConfig
from llamita.errors import BrokenFileError, UnsupportedError, UsageError
from llamita.families import FAMILIES, GGUF_ARCHITECTURES, gguf_key
from llamita.files.gguf_split import Gguf
from llamita.files.gguf_types import PLAIN, STORAGES, Field
from llamita.tokenizer.protocol import Tokenizer

# Numbers of every Llama: our names, and GGUF's without the family's prefix.
FIELDS: Mapping[str, str] = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
}
NEEDED = ("max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
# Default generation settings: the names in generation_config.json, and GGUF's.
SAMPLING: Mapping[str, tuple[str, str]] = {
    "temperature": ("general.sampling.temp", "float32"),
    "top_k": ("general.sampling.top_k", "int32"),
    "top_p": ("general.sampling.top_p", "float32"),
    "min_p": ("general.sampling.min_p", "float32"),
    "repetition_penalty": ("general.sampling.penalty_repeat", "float32"),
}
_BIASES = {
    "attn": [[f"attn_{which}", "bias"] for which in ("q", "k", "v", "output")],
    "ffn": [[f"ffn_{which}", "bias"] for which in ("gate", "up", "down")],
}
BLOCKS_DTYPE = "float32"  # the dtype of norms and activations in a model with block formats, as in llama.cpp


def config_to_gguf(config: LlamaConfig) -> tuple[dict[str, Field], torch.Tensor | None]:
    """The fields under the family's prefix, and the rotary divisors (H/2,) where the model has them.

    Raises UnsupportedError for what GGUF's Llama does not know.
    """
    if config.hidden_act not in ("silu", "swish"):
        raise UnsupportedError(
            f"GGUF's Llama has no activation but silu: {quoted(config.hidden_act)} cannot be written"
        )
    if config.attention_scale is not None:
        raise UnsupportedError("GGUF's Llama has no attention_scale: a model that has one cannot be written")
    prefix = FAMILIES[config.model_type].gguf
    values = {f"{prefix}.{key}": getattr(config, name) for name, key in FIELDS.items()}
    fields = {key: Field("uint32", value) for key, value in values.items() if value is not None}
    fields[f"{prefix}.attention.value_length"] = Field("uint32", config.head_dim)
    fields[f"{prefix}.attention.layer_norm_rms_epsilon"] = Field("float32", config.rms_norm_eps)
    fields[f"{prefix}.rope.dimension_count"] = Field("uint32", config.head_dim)
    rope, divisors = rope_to_gguf(config)
    return fields | rope, divisors


def config_from_gguf(file: Gguf, tokenizer: Tokenizer | None) -> LlamaConfig:
    """The config that a file's metadata and tensors say; its dtype is the one that most weights have.

    Raises UnsupportedError for another architecture, BrokenFileError for numbers that make no Llama.
    """
    values: dict[str, Any] = {key: field.value for key, field in file.metadata.items()}
    source = file.paths[0]
    architecture = _architecture(values, source)
    numbers = _numbers(file, values, architecture)
    try:
        config = LlamaConfig(
            **{name: number for name, number in numbers.items() if number is not None},
            rms_norm_eps=shortest(values.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)),
            tie_word_embeddings="output.weight" not in file,
            attention_bias=_has_bias(file, "attn"),
            mlp_bias=_has_bias(file, "ffn"),
            dtype=_dtype(file),
            **_roles(values, tokenizer),
        )
        _check_rotation(values, config)
        _check_sizes(file, config)
        return rope_from_gguf(values, config, _factors(file, config))
    except UnsupportedError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise BrokenFileError(
            f"{source} describes no Llama ({shortened(error, MAX_REASON)}): download it again"
        ) from error


def _architecture(values: Mapping[str, Any], source: object) -> str:
    """The architecture that a file names, which is the prefix of its keys; raises UnsupportedError for no Llama's."""
    architecture = values.get("general.architecture")
    is_known = architecture in GGUF_ARCHITECTURES
    if not is_known or values.get(f"{architecture}.expert_count", 0):
        what = "a mixture of experts" if is_known else f"of architecture {quoted(architecture)}"
        raise UnsupportedError(f"{source} is {what}: only plain Llamas can be read")
    if values.get(f"{architecture}.attention.causal") is False:
        raise UnsupportedError(
            f"{source} attends to later tokens too (attention.causal): only causal Llamas can be read"
        )
    return str(architecture)


def _numbers(file: Gguf, values: Mapping[str, Any], architecture: str) -> dict[str, int | None]:
    """The numbers of `FIELDS` by our names; raises BrokenFileError where one is missing, or the embedding is."""
    source = file.paths[0]
    numbers = {name: _number(values, f"{architecture}.{key}", source) for name, key in FIELDS.items()}
    missing = next((f"{architecture}.{FIELDS[name]}" for name in NEEDED if numbers[name] is None), None)
    if missing or "token_embd.weight" not in file:
        raise BrokenFileError(f"{source} has no {missing or 'token_embd.weight'}: it is no whole model")
    embedding = file.entry("token_embd.weight").shape
    if len(embedding) != 2:
        raise BrokenFileError(f"{source} has an embedding of shape {embedding}, not of rows: download it again")
    return {**numbers, "vocab_size": embedding[0], "sliding_window": numbers["sliding_window"] or None}  # 0 is none


def generation_to_gguf(generation: Mapping[str, Any]) -> dict[str, Field]:
    """How the model writes by default: nothing for one that is greedy, as programs differ in what they do then."""
    if not generation.get("do_sample"):
        return {}
    given = {name: generation.get(name) for name in SAMPLING}
    return {SAMPLING[name][0]: Field(SAMPLING[name][1], value) for name, value in given.items() if value is not None}


def generation_from_gguf(metadata: Mapping[str, Field], config: LlamaConfig) -> dict[str, Any]:
    """A generation_config.json's content."""
    ids: dict[str, Any] = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    ids["eos_token_id"] = list(config.eos_token_ids) or None
    found: dict[str, Any] = {name: metadata[key].value for name, (key, _) in SAMPLING.items() if key in metadata}
    settings = {name: shortest(value) if type(value) is float else value for name, value in found.items()}
    if settings:
        settings["do_sample"] = settings.get("temperature", 1) != 0
    return {name: value for name, value in {**ids, **settings}.items() if value is not None}


def _number(values: Mapping[str, Any], key: str, source: object) -> int | None:
    value = values.get(key)
    if isinstance(value, list):  # one number a layer
        if len(set(value)) != 1:
            raise UnsupportedError(f"{source} has layers that differ in {key}: only Llamas of equal layers can be read")
        value = value[0]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BrokenFileError(f"{source} is damaged: {key} is {quoted(value)}, no whole number")
    return value


def _dtype(file: Gguf) -> str:
    """The dtype of most weights; with blocks among them, that of what is not in blocks."""
    sizes: dict[str, int] = {}
    for name in file.names:
        entry = file.entry(name)
        if len(entry.shape) == 2:
            sizes[entry.storage] = sizes.get(entry.storage, 0) + entry.stop - entry.start
    if any(STORAGES[storage].dtype is None for storage in sizes):
        return BLOCKS_DTYPE
    most = max(PLAIN, key=lambda storage: sizes.get(storage, 0))
    return str(STORAGES[most].dtype).removeprefix("torch.")


def _has_bias(file: Gguf, part: str) -> bool:
    """Whether a projection of any layer, in attention or feed-forward, has a bias."""
    names = (name.split(".") for name in file.names)
    return any(name[0] == "blk" and name[2:] in _BIASES[part] for name in names)


def _factors(file: Gguf, config: LlamaConfig) -> torch.Tensor | None:
    """The divisors of the rotary frequencies (H/2,), where the file has such."""
    if FREQUENCY_FACTORS not in file:
        return None
    entry, shape = file.entry(FREQUENCY_FACTORS), (config.head_dim // 2,)
    if entry.storage not in PLAIN or entry.shape != shape:
        raise UsageError(f"{FREQUENCY_FACTORS} is {entry.storage} of shape {entry.shape}, not plain numbers of {shape}")
    return file.load(FREQUENCY_FACTORS).float()


def _roles(values: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is not None:
        ends = tokenizer.eos_token_ids
        bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    else:
        bos, end, pad = (values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding"))
        ends = [] if end is None else [end]
    eos = tuple(ends) if len(ends) > 1 else next(iter(ends), None)
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def _check_sizes(file: Gguf, config: LlamaConfig) -> None:
    """That the file has room for what its numbers promise: a header alone must not make a huge model."""
    queries = config.num_attention_heads * config.head_dim
    for name, rows in (("attn_q", queries), ("ffn_up", config.intermediate_size)):
        shape, weight = (rows, config.hidden_size), f"blk.0.{name}.weight"
        if weight not in file or file.entry(weight).shape != shape:
            raise UsageError(f"it has no {weight} of shape {shape}")
    if config.num_hidden_layers > len(file.names):
        raise UsageError(f"it has {len(file.names)} tensors for {config.num_hidden_layers} layers")


def _check_rotation(values: Mapping[str, Any], config: LlamaConfig) -> None:
    turning = values.get(gguf_key(config.model_type, "rope.dimension_count"), config.head_dim)
    keys = [gguf_key(config.model_type, f"attention.{which}_length") for which in ("key", "value")]
    lengths = {values.get(key, config.head_dim) for key in keys}
    if turning != config.head_dim or lengths != {config.head_dim}:
        raise UnsupportedError(
            f"heads of {config.head_dim} of which {turning} numbers turn, with keys and values of "
            f"{sorted(map(str, lengths))}: only heads that turn whole and are alike can be read"
        )
