"""What a LoRA adapter is, as peft's adapter_config.json says it; loads no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from llamita import checks
from llamita.errors import UnsupportedError, UsageError

ALL_LINEAR = "all-linear"
OWN = (
    "r",
    "lora_alpha",
    "target_modules",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "bias",
    "rank_pattern",
    "alpha_pattern",
)
# Keys of peft that say how an adapter was made, trained or found, but not what it computes.
HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "layers_pattern", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
# Keys that narrow down the modules; the tensors of the file name those anyway.
SELECTING = ("exclude_modules", "layers_to_transform")
# Other starts ("pissa", "olora" and more) also change the base weights.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LoraConfig:
    """An adapter adds B(A(x)) times lora_alpha / r to each of the layers that it targets (arXiv:2106.09685).

    r: rows of A (r, K) and columns of B (N, r). use_rslora: divide by the root of r instead (arXiv:2312.03732).
    use_dora: also train the length of each row of the weight, see `llamita.adapters.dora`.
    target_modules: names or globs of linear layers and embeddings, as in `llamita.model.surgery.replace`, or
    "all-linear", which is all linear layers but the head. lora_dropout: the share of x that is dropped before A, in
    training.
    rank_pattern, alpha_pattern: other values of r and lora_alpha, by the end of a module's name or a regular
    expression for it. extra: further keys of an adapter_config.json, kept for the next file.
    Raises UsageError for impossible values, UnsupportedError where bias is not "none".
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value."""
        for name, rank in {"r": self.r, **checks.mapping("rank_pattern", self.rank_pattern)}.items():
            checks.count(name, rank)
        for name, alpha in {
            "lora_alpha": self.lora_alpha,
            **checks.mapping("alpha_pattern", self.alpha_pattern),
        }.items():
            checks.positive(name, alpha)
        checks.share("lora_dropout", self.lora_dropout)
        checks.flag("use_rslora", self.use_rslora)
        checks.flag("use_dora", self.use_dora)
        if self.bias != "none":
            raise UnsupportedError(f"bias is {checks.quoted(self.bias)}: llamita's adapters train no biases, say none")
        names = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if not isinstance(names, Sequence) or not names or not all(isinstance(one, str) and one for one in names):
            raise UsageError(f"target_modules is {checks.quoted(self.target_modules)}: give names of layers")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            _compiled(pattern)

    def rank(self, name: str) -> int:
        """The rank of the module of this name."""
        return _of_pattern(self.rank_pattern, name, self.r)

    def scaling(self, name: str) -> float:
        """What the product of the module of this name is multiplied by."""
        rank, alpha = self.rank(name), _of_pattern(self.alpha_pattern, name, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config of the object of an adapter_config.json.

        Raises UnsupportedError for keys that change what the adapter computes in ways that llamita does not know, and
        UsageError for impossible values.
        """
        kind = values.get("peft_type")
        if kind != "LORA":
            raise UnsupportedError(f"peft_type is {checks.quoted(kind)}: llamita reads adapters of the type LORA")
        for key, value in values.items():
            if not _is_harmless(key, value):
                raise UnsupportedError(
                    f"{checks.shortened(key)} is {checks.quoted(value)}, which changes what the adapter computes in a "
                    "way that llamita does not know: use peft for this adapter"
                )
        own = {key: values[key] for key in OWN if values.get(key) is not None}
        return cls(**own, extra={key: value for key, value in values.items() if key not in OWN})

    def to_dict(self) -> dict[str, Any]:
        """The object of an adapter_config.json."""
        names = self.target_modules
        return {
            "peft_type": "LORA",
            "task_type": None,
            "init_lora_weights": True,
            **self.extra,
            **{key: getattr(self, key) for key in OWN},
            "target_modules": names if isinstance(names, str) else list(names),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
        }


def _is_harmless(key: str, value: Any) -> bool:
    if key == "init_lora_weights":
        return any(value is start or (isinstance(start, str) and value == start) for start in STARTS)
    is_known = key in OWN or key in HARMLESS or key in SELECTING or key == "peft_type"
    return is_known or value is None or value is False or value in ({}, [], "")


def _of_pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first key that is the name or its end, as a regular expression."""
    return next((value for key, value in pattern.items() if _compiled(key).match(name)), default)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError) as error:
        raise UsageError(f"{checks.quoted(pattern)} is no regular expression ({error}): correct it") from None
