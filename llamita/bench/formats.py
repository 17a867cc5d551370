"""The cost of a model in each format: bytes read per token, operations per prompt."""

from dataclasses import dataclass

import torch

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.kernels.blocks import FORMATS as BLOCKS
from llamita.model.initial import shapes_only
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.surgery import choices

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BITS: dict[str, float] = {
    **{name: dtype.itemsize * 8 for name, dtype in DTYPES.items()},
    **{name: block.bits_per_weight for name, block in BLOCKS.items()},
    "int8": 8,
}
WIDE = "bf16"  # dtype of the weights that a quantized model does not quantize


def named_formats(formats: str) -> list[str]:
    """Parse a comma-separated list of formats; raises UsageError for an unknown one."""
    names = [name.strip().lower() for name in formats.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BITS]:
        raise UsageError(f"bench does not know the format {unknown[0]!r}: use one of {', '.join(BITS)}")
    if not names:
        raise UsageError(f"--formats is empty: use one of {', '.join(BITS)}")
    return names


def is_quantized(format: str) -> bool:
    """Whether this is a format of quantized weights, not a float dtype."""
    return format not in DTYPES


def dtype_of(format: str) -> torch.dtype:
    """The dtype of the weights that are not quantized."""
    return DTYPES[WIDE if is_quantized(format) else format]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a model: `read` for every decoded token, `held` in memory with the whole embedding."""

    read: float
    held: float


def weights(config: LlamaConfig, format: str) -> Weights:
    """Count the bytes of a model's matrices in a format, by llama.cpp's recipe of that name."""
    with shapes_only():
        model = LlamaForCausalLM(config)
    recipe = format if is_quantized(format) else {}
    read = held = 0.0
    for choice in choices(model, recipe):
        nbytes = choice.shape[0] * choice.shape[1] * BITS[choice.format_name or _float(format)] / 8
        held += nbytes
        read += 0 if choice.names == ("model.embed_tokens",) else nbytes  # a token reads one row of an untied embedding
    return Weights(read=read, held=held)


def _float(format: str) -> str:
    return WIDE if is_quantized(format) else format


def cache_bytes(config: LlamaConfig, tokens: int) -> float:
    """The bytes of the KV cache of `tokens` tokens, two bytes per number."""
    heads = config.num_key_value_heads or config.num_attention_heads
    return 2.0 * 2 * config.num_hidden_layers * heads * config.head_dim * tokens


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Additions and multiplications of a model: of a token in all layers, of its logits, of a query with one key."""

    layers: float
    logits: float
    pair: float

    @classmethod
    def of(cls, config: LlamaConfig) -> "Operations":
        """Count them, in all layers together."""
        logits, all_weights = config.vocab_size * config.hidden_size, weights(config, "fp32").read / 4
        width = config.num_attention_heads * config.head_dim
        pair = 4.0 * config.num_hidden_layers * width
        return cls(layers=2.0 * (all_weights - logits), logits=2.0 * logits, pair=pair)


def prompt_operations(config: LlamaConfig, tokens: int) -> float:
    """The additions and multiplications of a prefill that computes only the last token's logits."""
    each, pairs = Operations.of(config), tokens * (tokens + 1) / 2  # causal: half of all pairs
    return each.layers * tokens + each.logits + each.pair * pairs
