"""The released Llamas, and models of the same architecture, as data: name -> LlamaConfig."""

from typing import Any

from llamita.config import LlamaConfig

# name: (hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size)
SHAPES = {
    "7b": (4096, 32, 32, 32, 11008),
    "13b": (5120, 40, 40, 40, 13824),
    "30b": (6656, 60, 52, 52, 17920),
    "34b": (8192, 48, 64, 8, 22016),
    "65b": (8192, 80, 64, 64, 22016),
    "8b": (4096, 32, 32, 8, 14336),
    "70b": (8192, 80, 64, 8, 28672),
    "405b": (16384, 126, 128, 8, 53248),
    "1b": (2048, 16, 32, 8, 8192),
    "3b": (3072, 28, 24, 8, 8192),
    "tiny-1.1b": (2048, 22, 32, 4, 5632),
    "open-3b": (3200, 26, 32, 32, 8640),
    "smol-135m": (576, 30, 9, 3, 1536),
    "smol-360m": (960, 32, 15, 5, 2560),
    "smol-1.7b": (2048, 24, 32, 32, 8192),
}

LLAMA_1: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
LLAMA_2: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
CODE: dict[str, Any] = LLAMA_2 | {"max_position_embeddings": 16384, "rope_theta": 1e6}
CODE_INFILL: dict[str, Any] = CODE | {"vocab_size": 32016}
LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
LONG_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3_1: dict[str, Any] = LLAMA_3 | {"max_position_embeddings": 131072, "rope_scaling": LONG_ROPE}
LLAMA_3_2: dict[str, Any] = LLAMA_3_1 | {"rope_scaling": LONG_ROPE | {"factor": 32.0}, "tie_word_embeddings": True}
SMOL: dict[str, Any] = {
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}
SMOL_2: dict[str, Any] = SMOL | {"max_position_embeddings": 8192, "rope_theta": 1e5}

# name: (shape, the rest)
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-7b": ("7b", LLAMA_1),
    "llama-13b": ("13b", LLAMA_1),
    "llama-30b": ("30b", LLAMA_1),
    "llama-65b": ("65b", LLAMA_1 | {"rms_norm_eps": 1e-5}),
    "llama-2-7b": ("7b", LLAMA_2),
    "llama-2-13b": ("13b", LLAMA_2),
    "llama-2-70b": ("70b", LLAMA_2),
    "codellama-7b": ("7b", CODE_INFILL),
    "codellama-7b-python": ("7b", CODE),
    "codellama-13b": ("13b", CODE_INFILL),
    "codellama-13b-python": ("13b", CODE),
    "codellama-34b": ("34b", CODE),
    "codellama-70b": ("70b", CODE_INFILL),
    "llama-3-8b": ("8b", LLAMA_3),
    "llama-3-70b": ("70b", LLAMA_3),
    "llama-3.1-8b": ("8b", LLAMA_3_1),
    "llama-3.1-70b": ("70b", LLAMA_3_1),
    "llama-3.1-405b": ("405b", LLAMA_3_1),
    "llama-3.2-1b": ("1b", LLAMA_3_2),
    "llama-3.2-3b": ("3b", LLAMA_3_2),
    "llama-3.3-70b": ("70b", LLAMA_3_1),
    "tinyllama-1.1b": ("tiny-1.1b", LLAMA_1 | {"rms_norm_eps": 1e-5}),
    "openllama-3b": ("open-3b", LLAMA_1),
    "openllama-7b": ("7b", LLAMA_1),
    "openllama-13b": ("13b", LLAMA_1),
    "smollm-135m": ("smol-135m", SMOL),
    "smollm-360m": ("smol-360m", SMOL),
    "smollm-1.7b": ("smol-1.7b", SMOL),
    "smollm2-135m": ("smol-135m", SMOL_2),
    "smollm2-360m": ("smol-360m", SMOL_2),
    "smollm2-1.7b": ("smol-1.7b", SMOL_2 | {"rope_theta": 1.3e5}),
}


def preset(shape: str, rest: dict[str, Any]) -> LlamaConfig:
    """The config of a named shape with the fields that its shape does not say."""
    hidden, layers, heads, key_value_heads, wide = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=wide,
        **rest,
    )


PRESETS: dict[str, LlamaConfig] = {name: preset(shape, rest) for name, (shape, rest) in RELEASED.items()}
