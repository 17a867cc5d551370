"""Shapes of the models that are measured: real sizes with random weights, so nothing is downloaded."""

from llamita.checkpoint.load import find
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.presets import PRESETS

EMBEDDED = "cria"
SHAPES: dict[str, LlamaConfig] = {
    # stories110M of llama2.c
    "110m": LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
    ),
    "1b": PRESETS["llama-3.2-1b"],
    # for trying the benchmark itself
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    ),
}


def shape(name: str) -> LlamaConfig:
    """The config of a shape; "cria" is the embedded model's. Raises UsageError for an unknown name."""
    if name == EMBEDDED:
        return LlamaConfig.from_pretrained(find(EMBEDDED))
    if name not in SHAPES:
        raise UsageError(f"shape {name!r} is unknown: use one of cria, {', '.join(SHAPES)}")
    return SHAPES[name]
