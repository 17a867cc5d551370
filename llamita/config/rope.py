"""Rotary positions: the type, the base, and what the type needs, as files of any age say it."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from llamita import checks
from llamita.checks import quoted
from llamita.errors import UnsupportedError, UsageError

ROPE_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
# The optional keys of a type. Every other key of a file is kept, and has no effect.
ROPE_READS: dict[str, tuple[str, ...]] = {
    "yarn": (
        "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("original_max_position_embeddings", "attention_factor", "factor"),
    "llama3": ("original_max_position_embeddings",),
    "proportional": ("partial_rotary_factor", "factor"),
}  # fmt: skip
ROPE_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "truncate": checks.flag,
    "short_factor": checks.positives,
    "long_factor": checks.positives,
    "mscale": checks.not_negative,  # published files write 0 for "not given"
    "mscale_all_dim": checks.not_negative,
    "beta_fast": checks.not_negative,
    "beta_slow": checks.not_negative,
}
ROPE_SYNONYMS = {"su": "longrope", "ntk": "dynamic"}


@dataclass(frozen=True, kw_only=True, eq=False)
class RopeConfig(dict[str, Any]):
    """Rotary positions: the type, the base, and what the type needs (keys of transformers' `rope_parameters`).

    A dictionary of the keys that are set, too, which like the fields cannot be changed. Keys that no type knows are in
    `extra`, and written back. Raises UsageError for an unknown type and impossible values, UnsupportedError for what a
    Llama does not have.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    partial_rotary_factor: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_REQUIRED:
            raise UsageError(f"rope_type {quoted(self.rope_type)} is unknown: use one of {', '.join(ROPE_REQUIRED)}")
        for name in ROPE_REQUIRED[self.rope_type]:
            if getattr(self, name) is None:
                raise UsageError(f"rope_type {self.rope_type!r} needs the key {name!r}: add it to rope_parameters")
        given = {name: getattr(self, name) for name in KNOWN if getattr(self, name) is not None}
        for name, value in given.items():
            if name != "rope_type":
                ROPE_CHECKS.get(name, checks.positive)(f"rope {name}", value)
        if self.factor is not None and self.factor < 1:
            raise UsageError(f"rope factor is {self.factor}: it stretches the context, so it must be at least 1")
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise UsageError(f"rope_theta is {self.rope_theta}: the 'yarn' rope_type needs it above 1")
        if self.rope_type == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
            raise UsageError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )
        if self.partial_rotary_factor not in (None, 1) and self.rope_type not in ("default", "proportional"):
            raise UnsupportedError(
                f"partial_rotary_factor goes with rope_type 'proportional', not {self.rope_type!r}: only 1.0, which "
                f"changes nothing, may stand there, not {self.partial_rotary_factor}"
            )
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        dict.update(self, plain | dict(self.extra))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RopeConfig":
        """Read `rope_parameters` or `rope_scaling` of any age: `type` or `rope_type`; keys of no use are warned of."""
        rope = parse(values)
        if unused := rope.unused:
            names = ", ".join(sorted(quoted(name) for name in unused))
            warnings.warn(
                f"rope_type {rope.rope_type!r} makes no use of {names}: kept in the file, without effect", stacklevel=2
            )
        return rope

    def to_dict(self) -> dict[str, Any]:
        """The keys that are set, as transformers 5 writes them."""
        return dict(self)

    @property
    def unused(self) -> list[str]:
        """The keys that are set and change nothing under this type."""
        used = {"rope_type", "rope_theta", *ROPE_REQUIRED[self.rope_type], *ROPE_READS.get(self.rope_type, ())}
        return [name for name in self if name not in used and (name, self[name]) != ("partial_rotary_factor", 1)]

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the length of the sequence."""
        return self.rope_type in ("dynamic", "longrope")

    def __reduce__(self) -> Any:
        return parse, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "rope_parameters cannot be changed in place: config.replace(rope_parameters={...}) gives a new config, "
            "and the model built from it the new rotation"
        )

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse  # pyright: ignore


KNOWN = tuple(item.name for item in fields(RopeConfig) if item.name != "extra")


def parse(values: Mapping[str, Any]) -> RopeConfig:
    """The RopeConfig of an object of a config.json, in silence. Raises what `RopeConfig` raises."""
    values = {key: value for key, value in values.items() if value is not None}
    for name in ("type", "rope_type"):
        if not isinstance(values.get(name, ""), str):
            raise UsageError(f"rope {name} is {quoted(values[name])}: it must be one of {', '.join(ROPE_REQUIRED)}")
    kinds = {ROPE_SYNONYMS.get(kind, kind) for kind in (values.pop("type", None), values.get("rope_type")) if kind}
    if len(kinds) > 1:
        both = " and ".join(sorted(map(str, kinds)))
        raise UsageError(f"rope keys 'type' and 'rope_type' contradict each other ({both}): keep one")
    values["rope_type"] = kinds.pop() if kinds else "default"
    nested = [key for key, value in values.items() if key not in KNOWN and _is_rope(value)]
    if nested:
        raise UnsupportedError(
            f"rope_parameters per layer type ({', '.join(map(checks.shortened, nested))}) are not part of Llama"
        )
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in KNOWN
    }
    return RopeConfig(**known, extra={key: value for key, value in values.items() if key not in KNOWN})


def _is_rope(value: Any) -> bool:
    """Whether a value is itself an object of rotary keys, as models with a rotation per layer type have them."""
    return isinstance(value, Mapping) and value.keys() <= {*KNOWN, "type"}


def old_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    """`rope_scaling` as readers before transformers 5 want it: the oldest accept exactly {type, factor}."""
    if rope.rope_type == "default":
        return None
    values = {key: value for key, value in rope.to_dict().items() if key != "rope_theta"}
    if rope.rope_type in ("linear", "dynamic"):
        return {"type": values.pop("rope_type"), **values}
    return values
