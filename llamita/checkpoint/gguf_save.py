"""A model and its tokenizer as a GGUF file that llama.cpp, Ollama and we read."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from llamita.checkpoint.gguf_config import config_to_gguf, generation_to_gguf
from llamita.checkpoint.gguf_names import FREQUENCY_FACTORS, IN_LAYER, heads_of, interleaved, to_gguf
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.families import FAMILIES
from llamita.files.gguf_types import PLAIN, STORAGES, Field
from llamita.files.gguf_write import Piece, write_gguf
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.recipes import RECIPES, SYNONYMS
from llamita.quant.surgery import choices, quantized_layers
from llamita.tokenizer.gguf_write import tokenizer_to_gguf
from llamita.tokenizer.protocol import Tokenizer

# general.file_type: what most of a file's weights are, by llama.cpp's numbers.
FILE_TYPES: Mapping[str, int] = {
    "f32": 0, "f16": 1, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "bf16": 32,
    **{one.name: one.file_type for one in FORMATS.values() if one.file_type is not None},
}  # fmt: skip
OWN = {dtype: name for name, dtype in PLAIN.items()}
SYNONYMS_OF_PLAIN = {"fp32": "f32", "float32": "f32", "fp16": "f16", "float16": "f16", "bfloat16": "bf16"}
QUANTIZATION_VERSION = 2  # of the block formats, since 2023
Weight = Tensor | QuantizedMatrix


def save_gguf(
    model: LlamaForCausalLM, tokenizer: Tokenizer | None, path: str | Path, format: str | None = None
) -> Path:
    """Write a GGUF file, whole or not at all; returns its path.

    format: f32, f16 or bf16 for the matrices, a recipe of `llamita.quant.recipes` such as q8_0 or q4_k_m, or None to
    leave every weight as it is: the blocks of a quantized model are then written byte for byte.
    Norms and biases are always f32. Memory: one weight at a time is there twice.
    Raises UsageError (an unknown format, values that it cannot hold), UnsupportedError (what GGUF has no place for).
    """
    if not isinstance(model, LlamaForCausalLM):
        raise UnsupportedError(f"a GGUF file holds a language model, not a {type(model).__name__}")
    name = known_format(format)
    config = model.config
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size} embeddings: they do "
            "not belong together"
        )
    fields, divisors = config_to_gguf(config)
    pieces = _pieces(model, name)
    if divisors is not None:
        pieces = {FREQUENCY_FACTORS: Piece("f32", tuple(divisors.shape), lambda: divisors), **pieces}
    metadata = {
        "general.architecture": Field("string", FAMILIES[config.model_type].gguf),
        "general.type": Field("string", "model"),
        "general.name": Field("string", Path(path).stem),
        **generation_to_gguf(model.generation_config),
        **fields,
        "general.file_type": Field("uint32", FILE_TYPES[name or _most(pieces)]),
        **_quantization(pieces),
        **(_without_tokens(config) if tokenizer is None else tokenizer_to_gguf(tokenizer, config.vocab_size)),
    }
    write_gguf(Path(path), metadata, pieces)
    return Path(path)


def known_format(format: str | None) -> str | None:
    """A format's name as it is kept; raises UsageError for one that no GGUF file has."""
    if format is None:
        return None
    name = format.lower()
    name = SYNONYMS_OF_PLAIN.get(name, SYNONYMS.get(name, name))
    if name not in FILE_TYPES or name not in (*PLAIN, *RECIPES):
        known = ", ".join([*PLAIN, *(recipe for recipe in RECIPES if recipe in FILE_TYPES)])
        raise UsageError(f"no GGUF file has the format {format!r}: known are {known}")
    return name


def _pieces(model: LlamaForCausalLM, format: str | None) -> dict[str, Piece]:
    """Every weight under GGUF's name, in the model's order."""
    chosen: dict[str, str] = {}
    if format is not None and format not in PLAIN:
        chosen = {one.names[0]: one.format_name for one in choices(model, format) if one.format_name is not None}
    weights: dict[str, Weight] = {f"{name}.weight": layer.matrix for name, layer in quantized_layers(model)}
    weights |= {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    pieces = {}
    for name in sorted(weights, key=_order):
        theirs = to_gguf(name)
        if name in model.tied_weights:
            continue
        if theirs is None:
            raise UnsupportedError(f"the weight {name} has no place in a GGUF file: merge adapters before saving")
        own = chosen.get(name.removesuffix(".weight"), format if format in PLAIN else None)
        pieces[theirs] = _piece(name, weights[name], own, heads_of(name, model.config))
    return pieces


def _order(name: str) -> tuple[int, int]:
    """The sort key of a weight: the embedding, the layers with their weights in the model's order, norm, head."""
    parts = name.split(".")
    if name.startswith("model.layers."):
        module = ".".join(parts[3:-1])
        return int(parts[2]), [*IN_LAYER, module].index(module)
    return (-1, 0) if "embed_tokens" in parts else (sys.maxsize, int("lm_head" in parts))


def _piece(name: str, weight: Weight, format: str | None, heads: int | None) -> Piece:
    shape = tuple(weight.shape)
    if not isinstance(weight, Tensor):
        storage = format or weight.format_name
        if storage not in STORAGES:
            raise UnsupportedError(f"{name} is quantized to {storage}, which no GGUF file has: quantize it to q8_0")
        make = weight.raw if format is None else _cast(name, weight.dequantize, format)
        return Piece(storage, shape, lambda: interleaved(make(), heads))
    storage = "f32" if weight.ndim == 1 else format or OWN.get(weight.dtype, "f32")
    if storage in FORMATS:
        return Piece(storage, shape, lambda: interleaved(_blocks(name, weight.cpu(), storage), heads))
    make = _cast(name, lambda: weight, storage)
    return Piece(storage, shape, lambda: interleaved(make(), heads))


def _blocks(name: str, weight: Tensor, storage: str) -> Tensor:
    if not weight.isfinite().all():
        raise UsageError(f"{name} has numbers that are not finite: mend the checkpoint, it cannot be quantized")
    return FORMATS[storage].quantize(weight)


def _cast(name: str, make: Callable[[], Tensor], storage: str) -> Callable[[], Tensor]:
    def cast() -> Tensor:
        weight = make().cpu()
        numbers = weight.to(PLAIN[storage])
        if storage == "f16" and not numbers.isfinite().all() and weight.isfinite().all():
            raise UsageError(f"{name} has numbers beyond 65504, the largest of f16: take bf16 or f32")
        return numbers

    return cast


def _most(pieces: Mapping[str, Piece]) -> str:
    """The name of llama.cpp's for a mix: after what most of the matrices' weights are."""
    sizes: Counter[str] = Counter()
    for piece in pieces.values():
        if len(piece.shape) == 2:
            sizes[piece.storage] += piece.shape[0] * piece.shape[1]
    most = sizes.most_common(1)[0][0]
    if most in ("q4_k", "q5_k"):
        downs = {piece.storage for name, piece in pieces.items() if "ffn_down" in name}
        return f"{most}_m" if "q6_k" in downs else f"{most}_s"
    return most


def _quantization(pieces: Mapping[str, Piece]) -> dict[str, Field]:
    has_blocks = any(STORAGES[piece.storage].block > 1 for piece in pieces.values())
    return {"general.quantization_version": Field("uint32", QUANTIZATION_VERSION)} if has_blocks else {}


def _without_tokens(config: LlamaConfig) -> dict[str, Field]:
    ids = {"bos": config.bos_token_id, "eos": next(iter(config.eos_token_ids), None), "padding": config.pad_token_id}
    roles = {
        f"tokenizer.ggml.{role}_token_id": Field("uint32", i) for role, i in ids.items() if i is not None and i >= 0
    }
    return {"tokenizer.ggml.model": Field("string", "none"), **roles}
