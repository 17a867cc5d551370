"""What a config may say: the names that are known, and the sizes that fit each other and the machine."""

from typing import Any

from llamita import checks
from llamita.checks import quoted
from llamita.errors import UnsupportedError, UsageError
from llamita.families import FAMILIES

ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu",
    "relu2", "relu6", "leaky_relu", "tanh", "sigmoid", "mish", "hardswish", "linear",
)  # fmt: skip
ATTENTION_BACKENDS = ("eager", "sdpa", "flex", "flash_attention_2", "fixed")
NUMERICS = ("hf", "meta")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MOST = {"num_hidden_layers": 10_000, "num_labels": 1_000_000}  # so that a few bytes cannot ask for all of the memory
MOST_OF_OTHERS, MOST_WEIGHTS = 2**31 - 1, 2**48  # ids and sizes are 32 bits wide; numbers in one matrix
DTYPES = ("float64", "float32", "float16", "bfloat16")


def check_counts(config: Any) -> None:
    """Raise UsageError unless what is counted, in a LlamaConfig as it was given, are whole numbers that make sense."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in (*names, "max_position_embeddings", "num_key_value_heads", "head_dim", "sliding_window"):
        value = getattr(config, name)
        if value is not None or name not in ("num_key_value_heads", "head_dim", "sliding_window"):
            checks.count(name, value)
            checks.at_most(name, value, MOST.get(name, MOST_OF_OTHERS))
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}: change one of them or give head_dim"
        )


def check_shapes(config: Any) -> None:
    """Raise UsageError where heads, rotary factors, token ids or matrices do not fit each other's sizes."""
    if config.num_attention_heads % config.num_key_value_heads:
        raise UsageError(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{config.num_key_value_heads}: every key/value head must serve as many query heads"
        )
    if config.head_dim % 2:
        raise UsageError(f"head_dim is {config.head_dim}: rotary positions turn pairs, so it must be even")
    rows = max(config.vocab_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    checks.at_most(f"the largest matrix, {rows} rows of {config.hidden_size},", rows * config.hidden_size, MOST_WEIGHTS)
    rope = config.rope_parameters
    if rope.rope_type == "dynamic" and config.head_dim < 4:
        raise UsageError(f"head_dim is {config.head_dim}: the 'dynamic' rope_type needs at least 4")
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if factors is not None and len(factors) != config.head_dim // 2:
            raise UsageError(
                f"rope {name} has {len(factors)} numbers, head_dim {config.head_dim} needs {config.head_dim // 2}"
            )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list) else (value,):
            checks.token(name, token, config.vocab_size)


def check_choices(config: Any) -> None:
    """Raise UnsupportedError for a name that is in no table, and UsageError for a flag or a share that is none."""
    choices = {
        "hidden_act": ACTIVATIONS,
        "attn_implementation": ATTENTION_BACKENDS,
        "numerics": NUMERICS,
        "dtype": (None, *DTYPES),
        "model_type": tuple(FAMILIES),
        "problem_type": (None, *PROBLEM_TYPES),
    }
    for name in ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias"):
        checks.flag(name, getattr(config, name))
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            listed = ", ".join(str(value) for value in allowed)
            raise UnsupportedError(f"{name} {quoted(getattr(config, name))} is not supported: use one of {listed}")
    for name in ("rms_norm_eps", "initializer_range", "attention_dropout"):
        checks.share(name, getattr(config, name))
    if config.attention_scale is not None:
        checks.positive("attention_scale", config.attention_scale)
    if config.rms_norm_eps == 0:
        raise UsageError("rms_norm_eps is 0: a row of zeros would be divided by zero, use 1e-6 or 1e-5")
