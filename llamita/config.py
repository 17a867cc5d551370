"""The facts of a Llama: shapes, rotary positions, token ids. Reads and writes config.json of any age."""

import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from llamita import checks
from llamita.checks import quoted
from llamita.errors import AccessError, BrokenFileError, LlamitaError, NotFoundError, UnsupportedError, UsageError

ROPE_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
ROPE_CHECKS = {"truncate": checks.flag, "short_factor": checks.positives, "long_factor": checks.positives}
ROPE_SYNONYMS = {"su": "longrope", "ntk": "dynamic"}
ROPE_WITH_ORIGINAL_LENGTH = ("yarn", "longrope", "llama3")

ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu",
    "relu2", "relu6", "leaky_relu", "tanh", "sigmoid", "mish", "hardswish", "linear",
)  # fmt: skip
ATTENTION_BACKENDS = ("eager", "sdpa", "flex", "flash_attention_2", "fixed")
BACKEND_SYNONYMS = {"flex_attention": "flex", "flash_attn_2": "flash_attention_2"}
NUMERICS = ("hf", "meta")
MODEL_TYPES = ("llama", "mistral")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MOST = {"num_hidden_layers": 10_000, "num_labels": 1_000_000}  # so that a few bytes cannot ask for all of the memory
MOST_OF_OTHERS, MOST_WEIGHTS = 2**31 - 1, 2**48  # ids and sizes are 32 bits wide; numbers in one matrix
DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the type, the base, and what the type needs (keys of transformers' `rope_parameters`)."""

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

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_REQUIRED:
            raise UsageError(f"rope_type {quoted(self.rope_type)} is unknown: use one of {', '.join(ROPE_REQUIRED)}")
        for name in ROPE_REQUIRED[self.rope_type]:
            if getattr(self, name) is None:
                raise UsageError(f"rope_type {self.rope_type!r} needs the key {name!r}: add it to rope_parameters")
        for name, value in self.to_dict().items():
            if name != "rope_type":
                ROPE_CHECKS.get(name, checks.positive)(f"rope {name}", value)
        if self.factor is not None and self.factor < 1:
            raise UsageError(f"rope factor is {self.factor}: it stretches the context, so it must be at least 1")
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise UsageError(f"rope_theta is {self.rope_theta}: the 'yarn' rope_type needs it above 1")
        if self.rope_type == "llama3" and self["high_freq_factor"] <= self["low_freq_factor"]:
            raise UsageError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )
        if self.partial_rotary_factor is not None and self.rope_type not in ("default", "proportional"):
            raise UnsupportedError(f"partial_rotary_factor goes with rope_type 'proportional', not {self.rope_type!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RopeConfig":
        """Read `rope_parameters` or `rope_scaling` of any age (`type` or `rope_type`; keys of no use are an error)."""
        values = {key: value for key, value in values.items() if value is not None}
        for name in ("type", "rope_type"):
            if not isinstance(values.get(name, ""), str):
                raise UsageError(f"rope {name} is {quoted(values[name])}: it must be one of {', '.join(ROPE_REQUIRED)}")
        kinds = {ROPE_SYNONYMS.get(kind, kind) for kind in (values.pop("type", None), values.get("rope_type")) if kind}
        if len(kinds) > 1:
            both = " and ".join(sorted(map(str, kinds)))
            raise UsageError(f"rope keys 'type' and 'rope_type' contradict each other ({both}): keep one")
        values["rope_type"] = kinds.pop() if kinds else "default"
        nested = [key for key, value in values.items() if isinstance(value, Mapping)]
        if nested:
            raise UnsupportedError(f"rope_parameters per layer type ({', '.join(nested)}) are not part of Llama")
        unknown = values.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise UsageError(f"rope_parameters has keys Llama does not know: {', '.join(sorted(unknown))}")
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        """The keys that are set, as transformers 5 writes them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }

    def __getitem__(self, key: str) -> Any:
        """`config.rope_parameters["rope_theta"]`, as transformers 5 users read it."""
        return self.to_dict()[key]

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the length of the sequence."""
        return self.rope_type in ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Every hyper-parameter of a Llama, by the names of Hugging Face's config.json; frozen and validated.

    `rope_theta` and `rope_scaling` are the older spelling of `rope_parameters` and may be given in its place;
    `num_labels` may be given for an `id2label` without names.
    `attn_implementation` and `numerics` choose how this process computes and are not written to files.
    Keys that Llama does not know are kept in `extra`, readable as attributes, and written back.
    Raises UsageError (a ValueError) for impossible or contradictory values.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = cast("int", None)
    head_dim: int = cast("int", None)
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: RopeConfig = cast("RopeConfig", None)  # noqa: RUF009
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    sliding_window: int | None = None
    dtype: str | None = None
    problem_type: str | None = None
    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    model_type: str = "llama"
    attn_implementation: str = "sdpa"
    numerics: str = "hf"
    extra: Mapping[str, Any] = field(default_factory=dict)
    rope_theta: InitVar[float | None] = None
    rope_scaling: InitVar[Mapping[str, Any] | None] = None
    num_labels: InitVar[int | None] = None

    def __post_init__(
        self, rope_theta: float | None, rope_scaling: Mapping[str, Any] | None, num_labels: int | None
    ) -> None:
        _check_counts(self)
        derived = {
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "head_dim": self.head_dim or self.hidden_size // self.num_attention_heads,
            "eos_token_id": tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else self.eos_token_id,
            "attn_implementation": BACKEND_SYNONYMS.get(self.attn_implementation, self.attn_implementation),
            "rope_parameters": _resolve_rope(self, rope_theta, rope_scaling),
            "id2label": _resolve_labels(self.id2label, num_labels),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        _check_shapes(self)
        _check_choices(self)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are not fields. Not through self.extra: an object being copied has none yet.
        extra = self.__dict__.get("extra", {})
        if name not in extra:
            raise AttributeError(f"LlamaConfig has no field {name!r}")
        return extra[name]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All end-of-sequence ids, whether the file gives none, one or a list."""
        eos = self.eos_token_id
        return () if eos is None else eos if isinstance(eos, tuple) else (eos,)

    def replace(self, **changes: Any) -> "LlamaConfig":
        """A copy with some fields changed and everything validated again; `rope_theta` alone changes only the base."""
        if "id2label" in changes:
            changes.setdefault("num_labels", None)
        if not {"rope_theta", "rope_scaling", "rope_parameters"} & changes.keys():
            return replace(self, **changes)
        theta = changes.pop("rope_theta", None)
        scaling = changes.pop("rope_scaling", None)
        rope = changes.pop("rope_parameters", None)
        if rope is None and scaling is None:
            rope, theta = replace(self.rope_parameters, rope_theta=theta), None
        elif rope is None and theta is None:
            theta = self.rope_parameters.rope_theta
        return replace(self, rope_parameters=rope, rope_theta=theta, rope_scaling=scaling, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LlamaConfig":
        """Read the object of a config.json, old or new; keys that Llama does not know go to `extra`."""
        values = {key: value for key, value in values.items() if key not in NOT_IN_FILES}
        if "torch_dtype" in values:
            values.setdefault("dtype", values["torch_dtype"])
            del values["torch_dtype"]
        values["dtype"] = str(values["dtype"]).removeprefix("torch.") if values.get("dtype") is not None else None
        if "id2label" in values:
            values.pop("num_labels", None)
        if values.get("id2label") is not None:
            values["id2label"] = checks.labels(values["id2label"])
        known = {item.name for item in fields(cls)} | {"rope_theta", "rope_scaling", "num_labels"}
        extra = {key: value for key, value in values.items() if key not in known}
        given = {key: value for key, value in values.items() if key in known and _is_given(key, value)}
        return cls(**given, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The object of a config.json that readers before and after transformers 5 understand."""
        names = [item.name for item in fields(self) if item.name not in NOT_IN_FILES]
        values = {name: getattr(self, name) for name in names if not _is_extension_unused(self, name)}
        values["rope_parameters"] = self.rope_parameters.to_dict()
        values["rope_theta"] = self.rope_parameters.rope_theta
        values["rope_scaling"] = _old_scaling(self.rope_parameters)
        values["torch_dtype"] = self.dtype
        values["eos_token_id"] = list(self.eos_token_ids) if len(self.eos_token_ids) > 1 else self.eos_token_id
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = {label: index for index, label in self.id2label.items()}
        return dict(self.extra) | values

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> "LlamaConfig":
        """Read `folder/config.json`, with some fields changed.

        Raises NotFoundError without such a file, BrokenFileError when it is not a JSON object.
        """
        path = Path(folder) / "config.json"
        try:
            values = checks.parsed_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{folder} has no config.json: give the folder of a Hugging Face checkpoint") from None
        except ValueError as error:  # UnicodeDecodeError is one, and quotes the bytes
            reason = checks.shortened(error, checks.MAX_REASON)
            raise BrokenFileError(f"{path} is not valid JSON ({reason}): fetch it again") from None
        if not isinstance(values, dict):
            raise BrokenFileError(f"{path} holds a {type(values).__name__}, not a JSON object: fetch it again")
        config = cls.from_dict(values)
        return config.replace(**changes) if changes else config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder/config.json`, replacing it in one step."""
        path = Path(folder) / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(".config.json.new")
        try:
            fresh.write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            kind = AccessError if isinstance(error, PermissionError) else LlamitaError
            raise kind(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error


# Readable under their other names, too. Set here: in the class body they would be the defaults of the arguments.
setattr(LlamaConfig, "rope_theta", property(lambda self: self.rope_parameters.rope_theta))  # noqa: B010
setattr(LlamaConfig, "num_labels", property(lambda self: len(self.id2label)))  # noqa: B010
setattr(LlamaConfig, "rope_scaling", property(lambda self: _old_scaling(self.rope_parameters)))  # noqa: B010

NOT_IN_FILES = ("attn_implementation", "numerics", "extra", "label2id")
MAY_BE_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "sliding_window", "dtype")


def _is_given(name: str, value: Any) -> bool:
    """Whether a file's null means null, not 'as usual'."""
    return value is not None or name in MAY_BE_NONE


def _is_extension_unused(config: LlamaConfig, name: str) -> bool:
    return name in ("sliding_window", "problem_type") and getattr(config, name) is None


def _old_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    """`rope_scaling` as readers before transformers 5 want it: the oldest accept exactly {type, factor}."""
    if rope.rope_type == "default":
        return None
    values = {key: value for key, value in rope.to_dict().items() if key != "rope_theta"}
    if rope.rope_type in ("linear", "dynamic"):
        return {"type": values.pop("rope_type"), **values}
    return values


def _resolve_rope(config: LlamaConfig, theta: float | None, scaling: Mapping[str, Any] | None) -> RopeConfig:
    """One RopeConfig from what was given: an object, a new or old dict, a bare theta, or nothing."""
    given = config.rope_parameters
    values = given.to_dict() if isinstance(given, RopeConfig) else checks.mapping("rope_parameters", given)
    scaling = checks.mapping("rope_scaling", scaling)
    if theta is not None and values.get("rope_theta", theta) != theta:
        raise UsageError(
            f"rope_theta {theta} contradicts rope_parameters' rope_theta {values['rope_theta']}: give one of them"
        )
    if theta is not None:
        values["rope_theta"] = theta
    if values.keys() - {"rope_theta", "rope_type"} and scaling:
        values.setdefault("rope_theta", 10000.0)
        if RopeConfig.from_dict({"rope_theta": values["rope_theta"]} | scaling) != RopeConfig.from_dict(values):
            raise UsageError("rope_scaling contradicts rope_parameters: give one of them")
        scaling = {}
    rope = RopeConfig.from_dict(
        {key: value for key, value in values.items() if not scaling or key == "rope_theta"} | scaling
    )
    return _with_original_length(rope, config)


def _resolve_labels(labels: Mapping[int, str], count: int | None) -> Mapping[int, str]:
    if count is None or count == len(labels):
        return labels
    checks.count("num_labels", count)
    checks.at_most("num_labels", count, MOST["num_labels"])
    return {index: f"LABEL_{index}" for index in range(count)}


def _with_original_length(rope: RopeConfig, config: LlamaConfig) -> RopeConfig:
    if rope.rope_type not in ROPE_WITH_ORIGINAL_LENGTH:
        return rope
    # Phi-3 style files keep it beside the rope keys, and transformers lets that one win.
    outside = config.extra.get("original_max_position_embeddings")
    length = outside or rope.original_max_position_embeddings or config.max_position_embeddings
    return replace(rope, original_max_position_embeddings=length)


def _check_counts(config: LlamaConfig) -> None:
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


def _check_shapes(config: LlamaConfig) -> None:
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
        for token in value if isinstance(value, tuple) else (value,):
            checks.token(name, token, config.vocab_size)


def _check_choices(config: LlamaConfig) -> None:
    choices = {
        "hidden_act": ACTIVATIONS,
        "attn_implementation": ATTENTION_BACKENDS,
        "numerics": NUMERICS,
        "dtype": (None, *DTYPES),
        "model_type": MODEL_TYPES,
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
    if config.rms_norm_eps == 0:
        raise UsageError("rms_norm_eps is 0: a row of zeros would be divided by zero, use 1e-6 or 1e-5")
