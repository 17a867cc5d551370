"""Rotary positions: from positions to angles to rotated queries and keys (arXiv:2104.09864)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig, RopeConfig


class Rotation:
    """The angles of some positions, ready to rotate queries and keys.

    A plain class on purpose: FSDP2 casts every float tensor it finds in tuples and dataclasses among a block's
    arguments, and angles in bf16 lose positions beyond 256.
    """

    def __init__(
        self,
        positions: Tensor,
        inv_freq: Tensor,
        attention_factor: float,
        dtype: torch.dtype,
        rope: RopeConfig,
        numerics: str,
    ) -> None:
        angles = positions[..., None].float() * inv_freq  # (B, T, H/2)
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]  # (B, T, 1, H)
        rotate, angle_dtype = NUMERICS[numerics]
        self.cos = (angles.cos() * attention_factor).to(angle_dtype or dtype)
        self.sin = (angles.sin() * attention_factor).to(angle_dtype or dtype)
        self.depends_on_length = rope.rope_type in AT_LENGTH
        self._rotate = rotate
        self._rest = (inv_freq, attention_factor, dtype, rope, numerics)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (B, T, heads, H) by the angles of its positions."""
        return self._rotate(x, self.cos, self.sin)

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of the same frequencies at other positions (B, S)."""
        with torch.no_grad():
            return Rotation(positions, *self._rest)


def rotate_half(x: Tensor) -> Tensor:
    """Each pair (i, i + H/2) rotated by a right angle: x (..., H) -> (..., H)."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_in_model_dtype(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers' arithmetic: cos and sin rounded to the model's dtype, products in it; x (B, T, heads, H)."""
    return x * cos + rotate_half(x) * sin


def rotate_in_fp32(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Meta's arithmetic: everything in fp32, rounded once at the end (Meta's pairs lie side by side in the file)."""
    return (x.float() * cos + rotate_half(x.float()) * sin).type_as(x)


# numerics -> how to rotate, and the dtype of the angles (None: the model's)
NUMERICS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], torch.dtype | None]] = {
    "hf": (rotate_in_model_dtype, None),
    "meta": (rotate_in_fp32, torch.float32),
}


class LlamaRotaryEmbedding(nn.Module):
    """Positions to rotations, once per pass for all layers.

    The frequencies are fp32 whatever the model's dtype and are computed again whenever the module is moved, so they
    survive `.to(bfloat16)` and loading on the meta device.

    Types whose frequencies depend on the length (dynamic, longrope) take the longest position of the pass. A cache
    keeps such keys un-rotated, and every pass rotates all of them by its own frequencies. So a query and its keys
    always have one base; where keys are stored rotated, older keys keep the base of a shorter text.
    """

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", None, persistent=False)
        self.reset()

    def reset(self, device: torch.device | None = None) -> None:
        """Compute the frequencies (H/2,) of short sequences and the factor on cos and sin."""
        with torch.device("cpu"):  # not on the meta device, whose arithmetic is Python and loads torch's compiler
            inv_freq, self.attention_factor = frequencies(self.config)
        self.inv_freq = inv_freq.to(device or torch.get_default_device())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LlamaRotaryEmbedding":
        super()._apply(fn, recurse)
        self.reset(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of positions (B, T) for queries and keys of `dtype`."""
        rope = self.config.rope_parameters
        inv_freq = self.inv_freq
        with torch.no_grad():  # no decorator: the class's forward is to be this very function, which plans look for
            if rope.rope_type in AT_LENGTH:
                inv_freq = AT_LENGTH[rope.rope_type](self.config, positions.max().float() + 1, inv_freq)
            return Rotation(positions, inv_freq, self.attention_factor, dtype, rope, self.config.numerics)


def frequencies(config: LlamaConfig) -> tuple[Tensor, float]:
    """The inverse frequencies (H/2,) in fp32 and the factor on cos and sin, for sequences of ordinary length."""
    return FREQUENCIES[config.rope_parameters.rope_type](config)


def _plain(config: LlamaConfig, base: float | Tensor | None = None) -> Tensor:
    """1 / base^(2i/H) in fp32: (H/2,)."""
    base = config.rope_parameters.rope_theta if base is None else base
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=getattr(base, "device", None))
    return 1.0 / (base ** (steps / config.head_dim))


def default(config: LlamaConfig) -> tuple[Tensor, float]:
    """The frequencies of the paper."""
    return _plain(config), 1.0


def linear(config: LlamaConfig) -> tuple[Tensor, float]:
    """Position interpolation: positions divided by `factor` (arXiv:2306.15595)."""
    return _plain(config) / config.rope_parameters["factor"], 1.0


def dynamic(config: LlamaConfig) -> tuple[Tensor, float]:
    """NTK-aware base that grows with the length; up to max_position_embeddings as if it were that long."""
    return _plain(config, _dynamic_base(config, config.max_position_embeddings)), 1.0


def _dynamic_base(config: LlamaConfig, length: int | Tensor) -> float | Tensor:
    factor, dim = config.rope_parameters["factor"], config.head_dim
    growth = (factor * length / config.max_position_embeddings) - (factor - 1)
    return config.rope_parameters.rope_theta * growth ** (dim / (dim - 2))


def dynamic_at(config: LlamaConfig, length: Tensor, short: Tensor) -> Tensor:
    """The frequencies of a sequence of `length` (): `short` up to max_position_embeddings, the grown base above."""
    longest = torch.clamp(length, min=config.max_position_embeddings)
    return torch.where(length > config.max_position_embeddings, _plain(config, _dynamic_base(config, longest)), short)


def yarn(config: LlamaConfig) -> tuple[Tensor, float]:
    """High frequencies kept, low ones divided by `factor`, a linear ramp between (arXiv:2309.00071)."""
    rope = config.rope_parameters
    factor, length = rope["factor"], rope["original_max_position_embeddings"]
    powers = rope.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    low, high = (_dimension_of(rotations, config, length) for rotations in (rope.beta_fast or 32, rope.beta_slow or 1))
    if rope.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high = high + 0.001 if low == high else high  # a ramp of no width would divide by zero
    ramp = ((torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return inv_freq, _yarn_attention_factor(rope)


def _dimension_of(rotations: float, config: LlamaConfig, length: int) -> float:
    """The dimension that makes this number of rotations over `length` positions."""
    return (config.head_dim * math.log(length / (rotations * 2 * math.pi))) / (
        2 * math.log(config.rope_parameters.rope_theta)
    )


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def scaled(mscale: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * mscale * math.log(rope["factor"]) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scaled(rope.mscale) / scaled(rope.mscale_all_dim)
    return scaled(1)


def longrope(config: LlamaConfig) -> tuple[Tensor, float]:
    """One searched divisor per frequency, in two sets: this is the one of short sequences (arXiv:2402.13753)."""
    rope = config.rope_parameters
    length = rope["original_max_position_embeddings"]
    factor = rope.factor if rope.factor is not None else config.max_position_embeddings / length
    if rope.attention_factor is not None:
        attention_factor = rope.attention_factor
    else:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    return _divided(config, rope["short_factor"]), attention_factor


def _divided(config: LlamaConfig, divisors: list[float], device: torch.device | None = None) -> Tensor:
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    divided = torch.tensor(divisors, dtype=torch.float32, device=device)
    return 1.0 / (divided * config.rope_parameters.rope_theta**exponent)


def longrope_at(config: LlamaConfig, length: Tensor, short: Tensor) -> Tensor:
    """The set of a sequence of `length` (): `short` up to original_max_position_embeddings, the long set above."""
    rope = config.rope_parameters
    long = _divided(config, rope["long_factor"], short.device)
    return torch.where(length > rope["original_max_position_embeddings"], long, short)


def llama3(config: LlamaConfig) -> tuple[Tensor, float]:
    """Llama 3.1: frequencies of long wavelengths divided by `factor`, short ones kept, interpolated between."""
    rope = config.rope_parameters
    factor, length = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    inv_freq = _plain(config)
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > length / low, inv_freq / factor, inv_freq)
    smooth = (length / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = ~(wavelength < length / high) & ~(wavelength > length / low)
    return torch.where(is_between, smoothed, scaled), 1.0


def proportional(config: LlamaConfig) -> tuple[Tensor, float]:
    """Only the first share of the pairs rotates; the angles are spaced as over the whole head."""
    rope = config.rope_parameters
    share = 1.0 if rope.partial_rotary_factor is None else rope.partial_rotary_factor
    rotating = int(share * config.head_dim // 2)
    inv_freq = torch.zeros(config.head_dim // 2, dtype=torch.float32)
    inv_freq[:rotating] = _plain(config)[:rotating]
    return inv_freq / (rope.factor or 1.0), 1.0


FREQUENCIES: dict[str, Callable[[LlamaConfig], tuple[Tensor, float]]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "longrope": longrope,
    "llama3": llama3,
    "proportional": proportional,
}
AT_LENGTH: dict[str, Callable[[LlamaConfig, Tensor, Tensor], Tensor]] = {
    "dynamic": dynamic_at,
    "longrope": longrope_at,
}
