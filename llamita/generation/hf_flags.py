"""transformers' generation flags: their defaults, what a checkpoint says of them, and what a call does."""

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.generation.settings import DRAFTING_DEFAULTS, GenerationSettings, plain

# Flags of transformers that are accepted only with these values, which change nothing.
NEUTRAL: Mapping[str, Any] = {
    "penalty_alpha": None, "dola_layers": None, "diversity_penalty": 0.0, "num_beam_groups": 1, "constraints": None,
    "force_words_ids": None, "low_memory": False, "assistant_lookbehind": 10, "target_lookbehind": 10, "use_mtp": False,
    "assistant_ensemble_weight": None, "num_assistant_tokens_schedule": "constant", "is_assistant": False,
    "speculation_type": None, "decoder_start_token_id": None, "synced_gpus": False, "disable_compile": True,
    "compile_config": None, "custom_generate": None, "trust_remote_code": None,
    "max_cache_len": None, "continuous_batching_config": None,
}  # fmt: skip
# Flags of other models or older versions, and why a Llama has none.
NO_FLAGS: Mapping[str, str] = {
    "token_type_ids": "this model knows no types of tokens",
    "cache_position": "the cache knows where it stands, and position_ids say where tokens do",
}
NAMES = tuple(item.name for item in fields(GenerationSettings))


def resolve(flags: Mapping[str, Any], *, checkpoint: Mapping[str, Any], config: LlamaConfig) -> GenerationSettings:
    """The flags of a call over those of the checkpoint's generation_config.json, or of its config without one.

    Raises UsageError for an unknown flag, naming the nearest; UnsupportedError for one that does nothing here.
    """
    for name, value in flags.items():
        if name not in NAMES:
            _refuse(name, value)
    if not checkpoint:
        checkpoint = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    ignored = [name for name in NEUTRAL if name in checkpoint and not _is_neutral(name, checkpoint[name])]
    if ignored:
        warnings.warn(f"the checkpoint asks for {', '.join(ignored)}, which llamita leaves out", stacklevel=3)
    defaults = {
        name: checkpoint[name] for name in NAMES if checkpoint.get(name) is not None and name not in DRAFTING_DEFAULTS
    }
    given = {name: plain(value) for name, value in flags.items() if name in NAMES}
    return GenerationSettings(**_with_switches(defaults, given))


def _with_switches(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A flag of None takes the default, but switches off what None switches off, as in transformers."""
    off = {"eos_token_id", "pad_token_id", "top_k", "top_p", "temperature"}
    neutral = {"top_p": 1.0, "temperature": 1.0}
    values = {name: neutral.get(name) if value is None and name in off else value for name, value in given.items()}
    return {**defaults, **{name: value for name, value in values.items() if value is not None or name in off}}


def _refuse(name: str, value: Any) -> None:
    if name in NO_FLAGS:
        raise UsageError(f"generate takes no {name}: {NO_FLAGS[name]}, leave it out")
    if name in NEUTRAL:
        if not _is_neutral(name, value):
            raise UnsupportedError(f"{name}={value!r} is not supported: leave it at {NEUTRAL[name]!r}")
        return
    nearest = difflib.get_close_matches(name, [*NAMES, *NEUTRAL], n=1, cutoff=0.0)[0]
    raise UsageError(f"generate has no flag {name!r}: did you mean {nearest!r}?")


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value == NEUTRAL[name]
