"""What a model weighs in each format: the bytes that a token reads, the operations that a prompt takes."""

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
WIDE = "bf16"  # what a quantized model keeps its norms in


def chosen(formats: str) -> list[str]:
    """The formats of a comma-separated list; raises UsageError for an unknown one."""
    names = [name.strip().lower() for name in formats.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BITS]:
        raise UsageError(f"{unknown[0]!r} is no format to measure: use one of {', '.join(BITS)}")
    if not names:
        raise UsageError(f"--formats names none: use one of {', '.join(BITS)}")
    return names


def is_quantized(format: str) -> bool:
    """Whether weights of this format are quantized rather than floats."""
    return format not in DTYPES


def dtype_of(format: str) -> torch.dtype:
    """The dtype of what is not quantized."""
    return DTYPES[WIDE if is_quantized(format) else format]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a model: `read` for every token that is written, `held` in memory, the embedding included."""

    read: float
    held: float


def weights(config: LlamaConfig, format: str) -> Weights:
    """The bytes of a model's matrices in a format, mixed as llama.cpp mixes formats of that name."""
    with shapes_only():
        model = LlamaForCausalLM(config)
    recipe = format if is_quantized(format) else {}
    read = held = 0.0
    for choice in choices(model, recipe):
        nbytes = choice.shape[0] * choice.shape[1] * BITS[choice.format_name or _float(format)] / 8
        held += nbytes
        read += 0 if choice.names == ("model.embed_tokens",) else nbytes  # of an untied embedding a token reads a row
    return Weights(read=read, held=held)


def _float(format: str) -> str:
    return WIDE if is_quantized(format) else format


def cache_bytes(config: LlamaConfig, tokens: int) -> float:
    """The bytes of keys and values of so many tokens in two bytes each."""
    heads = config.num_key_value_heads or config.num_attention_heads
    return 2.0 * 2 * config.num_hidden_layers * heads * config.head_dim * tokens


def prompt_operations(config: LlamaConfig, tokens: int) -> float:
    """The additions and multiplications of reading a prompt of which only the last token's logits are wanted."""
    head = config.vocab_size * config.hidden_size
    inner = weights(config, "fp32").read / 4 - head  # weights of all layers
    width = config.num_attention_heads * config.head_dim
    attention = 4.0 * config.num_hidden_layers * width * tokens * (tokens + 1) / 2  # causal: half of all pairs
    return 2.0 * (inner * tokens + head) + attention
