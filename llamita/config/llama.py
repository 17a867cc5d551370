"""The facts of a Llama: shapes, rotary positions, token ids, under the names of Hugging Face's config.json."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, InitVar, dataclass, field, fields, replace
from functools import wraps
from typing import Any, ClassVar, cast

from llamita.checks import nearest
from llamita.config.attention import AttentionFacts
from llamita.config.files import ConfigFiles
from llamita.config.layers import repeated_layer_types, resolve_layer_types
from llamita.config.rope import RopeConfig, old_scaling
from llamita.config.rope_fields import resolve_rope
from llamita.config.spelling import OTHER_NAMES, backend_name, renamed, resolve_labels
from llamita.config.validation import check_choices, check_counts, check_shapes
from llamita.errors import UsageError
from llamita.families import defaults_of


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(AttentionFacts, ConfigFiles):
    """Every hyper-parameter of a Llama, by the names of Hugging Face's config.json; frozen and validated.

    `rope_theta` and `rope_scaling` are the older spelling of `rope_parameters` and may be given in its place;
    `num_labels` may be given for an `id2label` without names.
    `attn_implementation` and `numerics` choose how this process computes and are not written to files.
    Keys that Llama does not know are kept in `extra`, readable as attributes, and written back.
    The fields of `ASSIGNABLE`, which shape no weight, may be assigned, as trainers do.
    Raises UsageError (a ValueError) for impossible or contradictory values, and for names that are no fields, unless
    they are given with a `model_type`, as a whole config.json.
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
    eos_token_id: int | list[int] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: RopeConfig = cast("RopeConfig", None)  # noqa: RUF009
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    sliding_window: int | None = None
    attention_scale: float | None = None
    layer_types: tuple[str, ...] | None = None
    dtype: str | None = None
    problem_type: str | None = None
    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    model_type: str = "llama"
    attn_implementation: str = "sdpa"
    numerics: str = "hf"
    extra: Mapping[str, Any] = field(default_factory=dict)
    attribute_map: ClassVar[Mapping[str, str]] = OTHER_NAMES
    rope_theta: InitVar[float | None] = None
    rope_scaling: InitVar[Mapping[str, Any] | None] = None
    num_labels: InitVar[int | None] = None

    def __post_init__(
        self, rope_theta: float | None, rope_scaling: Mapping[str, Any] | None, num_labels: int | None
    ) -> None:
        check_counts(self)
        derived = {
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "head_dim": self.head_dim or self.hidden_size // self.num_attention_heads,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "attn_implementation": backend_name(self.attn_implementation),
            "rope_parameters": resolve_rope(self, rope_theta, rope_scaling),
            "id2label": resolve_labels(self.id2label, num_labels),
            "layer_types": resolve_layer_types(self.layer_types, self.num_hidden_layers),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        check_shapes(self)
        check_choices(self)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are not fields. Not through self.extra: an object being copied has none yet.
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        if name in self.attribute_map:
            return getattr(self, self.attribute_map[name])
        if name not in NEUTRAL:
            raise AttributeError(f"LlamaConfig has no field {name!r}")
        return NEUTRAL[name]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All end-of-sequence ids, whether the file gives none, one or a list."""
        eos = self.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)

    @property
    def label2id(self) -> dict[str, int]:
        """The number of each class by its name."""
        return {label: index for index, label in self.id2label.items()}

    def replace(self, **changes: Any) -> "LlamaConfig":
        """A copy with some fields changed and everything validated again; `rope_theta` alone changes only the base.

        Raises UsageError for a name that is no field, with the nearest one.
        """
        changes = renamed(changes)
        if "num_hidden_layers" in changes:
            changes.setdefault("layer_types", repeated_layer_types(self.layer_types, changes["num_hidden_layers"]))
        known = {*CHANGEABLE, *self.extra, *NEUTRAL}
        for name in changes:
            if name not in known:
                raise UsageError(f"LlamaConfig has no field {name!r}{nearest(name, known)}")
        others = {name: changes.pop(name) for name in list(changes) if name not in CHANGEABLE}
        if others:
            changes["extra"] = {**changes.get("extra", self.extra), **others}
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
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> "LlamaConfig":
        """Read the object of a config.json, old or new; keys that Llama does not know go to `extra`."""
        values = {**defaults_of(values.get("model_type")), **values}
        values = {key: value for key, value in values.items() if key not in NOT_IN_FILES}
        config = cls(**_arguments(values))
        return config.replace(**changes) if changes else config

    def to_dict(self) -> dict[str, Any]:
        """The object of a config.json that readers before and after transformers 5 understand."""
        names = [item.name for item in fields(self) if item.name not in NOT_IN_FILES]
        values = {name: getattr(self, name) for name in names if not _is_extension_unused(self, name)}
        values["rope_parameters"] = self.rope_parameters.to_dict()
        values["rope_theta"] = self.rope_parameters.rope_theta
        values["rope_scaling"] = old_scaling(self.rope_parameters)
        values["torch_dtype"] = self.dtype
        if self.layer_types is not None:
            values["layer_types"] = list(self.layer_types)
        values["eos_token_id"] = list(self.eos_token_ids) if len(self.eos_token_ids) > 1 else self.eos_token_id
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = self.label2id
        return dict(self.extra) | values

    def to_diff_dict(self) -> dict[str, Any]:
        """What of `to_dict` is not as in `LlamaConfig()`, and the model type."""
        usual = LlamaConfig().to_dict()
        return {
            key: value
            for key, value in self.to_dict().items()
            if key == "model_type" or key not in usual or usual[key] != value
        }

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "LlamaConfig":
        """The config itself: a Llama is text only."""
        return self

    def update(self, changes: Mapping[str, Any]) -> None:
        """Assign several fields at once; see `ASSIGNABLE`."""
        for name, value in changes.items():
            setattr(self, name, value)


# Readable under their other names, too. Set here: in the class body they would be the defaults of the arguments.
setattr(LlamaConfig, "rope_theta", property(lambda self: self.rope_parameters.rope_theta))  # noqa: B010
setattr(LlamaConfig, "num_labels", property(lambda self: len(self.id2label)))  # noqa: B010
setattr(LlamaConfig, "rope_scaling", property(lambda self: old_scaling(self.rope_parameters)))  # noqa: B010

NOT_IN_FILES = ("attn_implementation", "numerics", "extra", "label2id")
CHANGEABLE = {item.name for item in fields(LlamaConfig)} | {"rope_theta", "rope_scaling", "num_labels"}
# Fields that shape neither weights nor what forward computes of them: trainers and peft assign them.
ASSIGNABLE = (
    "use_cache", "pretraining_tp", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    "problem_type",
)  # fmt: skip
# What every config of transformers answers, with the answer of a Llama's file that says nothing.
NEUTRAL: Mapping[str, Any] = {
    "is_encoder_decoder": False, "return_dict": True, "use_return_dict": True, "output_attentions": False,
    "output_hidden_states": False, "chunk_size_feed_forward": 0, "architectures": None, "name_or_path": "",
    "_name_or_path": "", "keys_to_ignore_at_inference": ["past_key_values"], "gradient_checkpointing": False,
}  # fmt: skip
EXTENSIONS = ("sliding_window", "attention_scale", "layer_types", "problem_type")  # written where they say something
MAY_BE_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "sliding_window", "dtype")


def _init(self: LlamaConfig, **given: Any) -> None:
    """Make a config of its fields, or of all keys of a config.json, one of which is `model_type`."""
    unknown = given.keys() - CHANGEABLE - NEUTRAL.keys() - {*OTHER_NAMES, "label2id"}
    if unknown and "model_type" not in given:
        near = nearest(min(unknown), CHANGEABLE) or ": LlamaConfig.from_dict takes any key"
        raise UsageError(f"LlamaConfig has no field {min(unknown)!r}{near}")
    _of_fields(self, **(given if given.keys() <= CHANGEABLE else _arguments(given)))


_of_fields = LlamaConfig.__init__
setattr(LlamaConfig, "__init__", wraps(_of_fields)(_init))  # noqa: B010


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the object of a config.json gives; keys that Llama does not know are in `extra`."""
    labels = {"num_labels"} if "id2label" in values else set[str]()
    values = renamed({key: value for key, value in values.items() if key not in labels})
    extra = {key: value for key, value in values.items() if key not in CHANGEABLE}
    given = {key: value for key, value in values.items() if key in CHANGEABLE and _is_given(key, value)}
    return {**given, "extra": {**given.get("extra", {}), **extra}}


def _is_given(name: str, value: Any) -> bool:
    """Whether a file's null means null, not 'as usual'."""
    return value is not None or name in MAY_BE_NONE


def _is_extension_unused(config: LlamaConfig, name: str) -> bool:
    is_neutral = getattr(config, name) is None and name not in defaults_of(config.model_type)
    return name in EXTENSIONS and is_neutral


def _assign(self: LlamaConfig, name: str, value: Any) -> None:
    """Set one of the fields that may be, checked as everything is."""
    name = self.attribute_map.get(name, name)
    if name in {*self.extra, *NEUTRAL} - CHANGEABLE:
        object.__setattr__(self, "extra", {**self.extra, name: value})
    elif name in ASSIGNABLE:
        object.__setattr__(self, name, getattr(self.replace(**{name: value}), name))
    elif name in CHANGEABLE:
        raise FrozenInstanceError(
            f"{name} is a fact that models are built by: config.replace({name}=...) gives a new config"
        )
    else:
        raise FrozenInstanceError(f"LlamaConfig has no field {name!r}{nearest(name, {*CHANGEABLE, *NEUTRAL})}")


setattr(LlamaConfig, "__setattr__", _assign)  # noqa: B010  (in the class body a frozen dataclass refuses it)
