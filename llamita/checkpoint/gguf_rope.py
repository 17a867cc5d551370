"""Rotary positions in GGUF's terms: a type and its numbers, or a divisor for each frequency."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.config import LlamaConfig, RopeConfig
from llamita.errors import UnsupportedError
from llamita.families import gguf_key
from llamita.files.gguf_types import Field
from llamita.model.rope import frequencies

EXACT = "llamita.rope_parameters"  # our own key: exact values, which the other fields have in fp32 or as a tensor
TOLERANCE = 1e-5  # relative, between frequencies that a file gives twice


def rope_to_gguf(config: LlamaConfig) -> tuple[dict[str, Field], Tensor | None]:
    """The fields under the family's "rope.", our own field, and the divisors (H/2,) for types that need them.

    Raises UnsupportedError for a type that GGUF's Llama does not have.
    """
    rope = config.rope_parameters
    fields = {gguf_key(config.model_type, "rope.freq_base"): Field("float32", rope.rope_theta)}
    if rope.rope_type == "default":
        return fields, None
    fields[EXACT] = Field("string", json.dumps(rope.to_dict()))
    if rope.rope_type == "llama3" or _divides_always(rope):
        return fields, divisors(config)
    if rope.rope_type not in ("linear", "yarn") or rope.truncate is False:
        raise UnsupportedError(
            f"GGUF's Llama has no rotary type {quoted(rope.rope_type)}: only default, linear, yarn and llama3 can "
            "be written"
        )
    fields[gguf_key(config.model_type, "rope.scaling.type")] = Field("string", rope.rope_type)
    fields[gguf_key(config.model_type, "rope.scaling.factor")] = Field("float32", rope["factor"])
    return fields | (_yarn_fields(config) if rope.rope_type == "yarn" else {}), None


def _yarn_fields(config: LlamaConfig) -> dict[str, Field]:
    rope = config.rope_parameters
    own = frequencies(config)[1] / _usual_factor(rope["factor"])
    fields = {
        "original_context_length": Field("uint32", rope["original_max_position_embeddings"]),
        "yarn_beta_fast": Field("float32", rope.beta_fast or 32.0),
        "yarn_beta_slow": Field("float32", rope.beta_slow or 1.0),
    }
    if abs(own - 1) > TOLERANCE:
        fields["attn_factor"] = Field("float32", own)
    return {gguf_key(config.model_type, f"rope.scaling.{name}"): field for name, field in fields.items()}


def _usual_factor(factor: float) -> float:
    """What llama.cpp multiplies cos and sin by, besides `attn_factor`, under yarn."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def divisors(config: LlamaConfig) -> Tensor:
    """What the plain frequencies are divided by: (H/2,) in fp32."""
    plain = config.replace(rope_parameters=RopeConfig(rope_theta=config.rope_parameters.rope_theta))
    return frequencies(plain)[0] / frequencies(config)[0]


def rope_from_gguf(values: Mapping[str, Any], config: LlamaConfig, factors: Tensor | None) -> LlamaConfig:
    """The config with the rotary positions that a file's values, by key, and divisors (H/2,) say.

    Raises UnsupportedError for a type that is not known.
    """
    said = _said(values, config, factors)
    try:
        exact = config.replace(rope_parameters=RopeConfig.from_dict(json.loads(values.get(EXACT, ""))))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return said
    # What other programs read decides; ours is only believed where it says the same, more exactly.
    (ours, factor), (theirs, other) = frequencies(exact), frequencies(said)
    is_same = torch.allclose(ours, theirs, rtol=10 * TOLERANCE, atol=0) and math.isclose(factor, other, rel_tol=1e-4)
    return exact if is_same else said


def _said(values: Mapping[str, Any], config: LlamaConfig, factors: Tensor | None) -> LlamaConfig:
    prefix = gguf_key(config.model_type, "rope.")
    theta = shortest(values.get(f"{prefix}freq_base", 10000.0))
    kind = values.get(f"{prefix}scaling.type", "none")
    factor = shortest(values.get(f"{prefix}scaling.factor", values.get(f"{prefix}scale_linear", 1.0)))
    plain = RopeConfig(rope_theta=theta)
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"the file has the rotary type {quoted(kind)}: only none, linear and yarn are known")
    is_yarn = kind == "yarn" and factor > 1 and factors is None
    if (own := values.get(f"{prefix}scaling.attn_factor", 1.0)) != 1 and not is_yarn:
        raise UnsupportedError(
            f"the file scales cos and sin by {quoted(own)} (attn_factor): that is known of yarn alone"
        )
    if factors is not None:
        return _divided(config.replace(rope_parameters=plain), factors)
    if is_yarn:
        return config.replace(rope_parameters=_yarn(values, config, theta, factor))
    is_linear = factor > 1 and (kind == "linear" or f"{prefix}scale_linear" in values)
    rope = replace(plain, rope_type="linear", factor=factor) if is_linear else plain
    return config.replace(rope_parameters=rope)


def _yarn(values: Mapping[str, Any], config: LlamaConfig, theta: float, factor: float) -> RopeConfig:
    prefix = gguf_key(config.model_type, "rope.scaling.")
    own = shortest(values.get(f"{prefix}attn_factor", 1.0))
    return RopeConfig(
        rope_type="yarn",
        rope_theta=theta,
        factor=factor,
        original_max_position_embeddings=values.get(f"{prefix}original_context_length", config.max_position_embeddings),
        beta_fast=shortest(values.get(f"{prefix}yarn_beta_fast", 32.0)),
        beta_slow=shortest(values.get(f"{prefix}yarn_beta_slow", 1.0)),
        attention_factor=None if own == 1 else own * _usual_factor(factor),
    )


def _divided(config: LlamaConfig, factors: Tensor) -> LlamaConfig:
    """Llama 3's type where one of its kind divides so, else divisors given one by one."""
    theta = config.rope_parameters.rope_theta
    guess = _llama3(frequencies(config)[0].double(), factors.double(), theta)
    if guess is not None:
        guessed = config.replace(rope_parameters=guess)
        if torch.allclose(divisors(guessed), factors, rtol=TOLERANCE, atol=0):
            return guessed
    divided = tuple(factors.tolist())
    rope = RopeConfig(
        rope_type="longrope",
        rope_theta=theta,
        short_factor=divided,
        long_factor=divided,
        attention_factor=1.0,
        original_max_position_embeddings=config.max_position_embeddings,
    )
    return config.replace(rope_parameters=rope)


def _divides_always(rope: RopeConfig) -> bool:
    return rope.rope_type == "longrope" and rope.short_factor == rope.long_factor and rope.attention_factor == 1.0


def _llama3(plain: Tensor, factors: Tensor, theta: float) -> RopeConfig | None:
    """The numbers of Llama 3's type that divide the plain frequencies (H/2,) so; None where none seem to.

    Between the two ends, 1 / divisor = (1 - s) / factor + s with s = (length * frequency / 2 pi - low) / (high - low),
    a straight line in the frequency: two points tell length / (high - low) and low / (high - low). With low = 1, as in
    all released models, the rest follows.
    """
    factor = float(factors.max())
    is_between = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    if factor <= 1 or int(is_between.sum()) < 2:
        return None
    smooth = (1 / factors[is_between] - 1 / factor) / (1 - 1 / factor)
    turns = plain[is_between] / (2 * math.pi)
    slope = float((smooth[0] - smooth[-1]) / (turns[0] - turns[-1]))
    start = float(smooth[0] - slope * turns[0])
    if slope <= 0 or start >= 0:
        return None
    width = -1 / start
    return RopeConfig(
        rope_type="llama3",
        rope_theta=theta,
        factor=_rounded(factor),
        low_freq_factor=1.0,
        high_freq_factor=_rounded(1 + width),
        original_max_position_embeddings=max(1, round(slope * width)),
    )


def _rounded(value: float) -> float:
    """A number that fp32 has blurred, as somebody wrote it."""
    return float(f"{value:.4g}")


def shortest(value: float) -> float:
    """The shortest decimal number that is this one in fp32: 1e-05 rather than 9.99999974e-06."""
    exact = torch.tensor(value, dtype=torch.float32, device="cpu")
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next(
        (one for one in candidates if torch.tensor(one, dtype=torch.float32, device="cpu") == exact), float(value)
    )
