"""What a config says of its layers one by one."""

from collections.abc import Sequence
from typing import Any

from llamita.checks import quoted
from llamita.errors import UnsupportedError, UsageError

LAYER_TYPES = ("full_attention", "sliding_attention")


def resolve_layer_types(given: Any, layers: int) -> tuple[str, ...] | None:
    """One of `LAYER_TYPES` for each layer, or None where nothing is said.

    Layers of one type are what `sliding_window` says of all; layers that differ raise UnsupportedError.
    """
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != layers:
        raise UsageError(
            f"layer_types is {quoted(given)}: give one name for each of the {layers} layers, or leave it out"
        )
    strange = next((name for name in given if name not in LAYER_TYPES), None)
    if strange is not None:
        raise UnsupportedError(f"layer_types has {quoted(strange)}: use {' or '.join(LAYER_TYPES)} for all layers")
    if len(set(given)) > 1:
        raise UnsupportedError(
            "layer_types mixes full_attention and sliding_attention, which is not supported yet: use one for all layers"
        )
    return tuple(given)


def repeated_layer_types(types: tuple[str, ...] | None, layers: Any) -> tuple[str, ...] | None:
    """The same for another number of layers; a number that is none is left to be complained of elsewhere."""
    return types[:1] * layers if types and isinstance(layers, int) else None
