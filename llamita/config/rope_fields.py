"""Rotary positions from all fields of a config that may say something of them: today's, the older ones, and strays."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamita import checks
from llamita.config.rope import RopeConfig, parse
from llamita.errors import UsageError

WITH_ORIGINAL_LENGTH = ("yarn", "longrope", "llama3")


def resolve_rope(config: Any, theta: float | None, scaling: Mapping[str, Any] | None) -> RopeConfig:
    """One RopeConfig from what a LlamaConfig was given: an object, a new or old dict, a bare theta, or nothing.

    Raises UsageError where two of them contradict each other, and what `RopeConfig` raises.
    """
    given = config.rope_parameters
    read = parse if isinstance(given, RopeConfig) else RopeConfig.from_dict  # what was read is not warned of again
    values, scaling = checks.mapping("rope_parameters", given), checks.mapping("rope_scaling", scaling)
    share = config.extra.get("partial_rotary_factor")  # some files have it outside the rope keys
    theta = _inner_theta(theta, scaling if scaling.get("rope_theta") is not None else values)
    if theta is not None:
        values["rope_theta"] = theta
    if values.keys() - {"rope_theta", "rope_type"} and scaling:
        values.setdefault("rope_theta", 10000.0)
        if parse({"rope_theta": values["rope_theta"]} | scaling) != parse(values):
            raise UsageError("rope_scaling contradicts rope_parameters: give one of them")
        scaling = {}
    values = {key: value for key, value in values.items() if not scaling or key == "rope_theta"} | scaling
    if share is not None:
        values.setdefault("partial_rotary_factor", share)
    return _with_original_length(read(_with_factor(values, config)), config)


def _inner_theta(theta: float | None, values: Mapping[str, Any]) -> float | None:
    """The rotary base: that of the rope keys, where a file has another one outside them."""
    inner = values.get("rope_theta")
    if theta is None or inner is None or inner == theta:
        return theta if inner is None else inner
    warnings.warn(f"rope_theta is {theta}, and that of rope_parameters {inner}: the latter is used", stacklevel=2)
    return inner


def _with_factor(values: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    """A yarn of factor null stretches its original length to the present one."""
    length: Any = values.get("original_max_position_embeddings")
    is_open = "factor" in values and values["factor"] is None and checks.is_number(length) and length > 0
    is_yarn = "yarn" in (values.get("rope_type"), values.get("type"))
    return {**values, "factor": config.max_position_embeddings / length} if is_open and is_yarn else values


def _with_original_length(rope: RopeConfig, config: Any) -> RopeConfig:
    if rope.rope_type not in WITH_ORIGINAL_LENGTH:
        return rope
    # Phi-3 style files have it outside the rope keys, and transformers takes that one first.
    outside = config.extra.get("original_max_position_embeddings")
    length = outside or rope.original_max_position_embeddings or config.max_position_embeddings
    if length == rope.original_max_position_embeddings:
        return rope
    return replace(rope, original_max_position_embeddings=length)
