"""Families of models that are Llamas by another name: a row each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What a family's files mean.

    gguf: the architecture that a GGUF file names, which its keys begin with. defaults: what a config.json means by a
    key that it leaves out, where that is not what a Llama's means.
    """

    gguf: str = "llama"
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(  # llama.cpp writes a Mistral as a Llama
        defaults={
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096 * 32,
            "sliding_window": 4096,
        }
    ),
}
GGUF_ARCHITECTURES = tuple(dict.fromkeys(family.gguf for family in FAMILIES.values()))


def defaults_of(model_type: object) -> Mapping[str, Any]:
    """The defaults of a family; none of one that is not known, which the config refuses by its name."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    return {} if family is None else family.defaults


def gguf_key(model_type: str, name: str) -> str:
    """The whole name of one of a family's GGUF keys."""
    return f"{FAMILIES[model_type].gguf}.{name}"
