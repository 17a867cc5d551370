"""The fields that say how to write, shared by chat completions, completions and responses."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, Json, model_validator

from llamita.checks import quoted
from llamita.generation.text_options import TextOptions
from llamita.server.body import StrictModel, at_most, bounded
from llamita.server.errors import refused

MOST_N = 8
MOST_MESSAGES = 8192  # agents come to thousands in a long context
# An answer ends with the context, whatever its limit: clients have one limit for all models. None has 2**27 tokens.
MaxTokens = Annotated[int, Field(ge=1, le=2**27)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
BiasKey = Annotated[str, Field(max_length=10)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Schema = dict[str, Any] | Json[dict[str, Any]]
Regex = Annotated[str, Field(min_length=1, max_length=1024)]
Choice = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], bounded(256, least=1)]
Grammar = Annotated[str, Field(min_length=1, max_length=65_536)]
Text = Annotated[str, Field(max_length=2_000_000)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
PLAIN = (
    "min_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
)  # fmt: skip
FORMS = ("json_schema", "regex", "choice", "grammar")


def text_alone(*kinds: str) -> BeforeValidator:
    """What refuses a part of a content whose type is none of these, which are all texts, in one sentence."""

    def check(kind: Any) -> Any:
        if isinstance(kind, str) and kind not in kinds:
            raise ValueError(f"it is {quoted(kind)}, and the models read text alone: send a part of type {kinds[0]}")
        return kind

    return BeforeValidator(check)


class RequestModel(StrictModel):
    """A request. Fields that it does not know are ignored, as clients send new ones; those of UNSUPPORTED are refused.

    UNSUPPORTED: field -> why it cannot be had, said unless its value is None or among HARMLESS.
    """

    model_config = ConfigDict(extra="allow")
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="after")
    def _check_unsupported(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in self.UNSUPPORTED and value is not None and value not in self.HARMLESS.get(name, ()):
                text = f"{name} is not supported: {self.UNSUPPORTED[name]}"
                raise refused(text, param=name, code="unsupported_parameter")
        return self


class StreamOptions(StrictModel):
    """What a stream has besides the text."""

    include_usage: bool | None = None


class StructuredOutputs(RequestModel):
    """vLLM's form of an answer: one of these fields."""

    UNSUPPORTED: ClassVar = {
        "structural_tag": "ask for tools, or by a grammar",
        "whitespace_pattern": "blanks between the parts of JSON are few and none matter",
    }

    json_schema: Schema | None = Field(None, alias="json")
    regex: Regex | None = None
    choice: Choice | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if len(self.form) != 1:
            raise ValueError("give one of json, regex, choice, grammar and json_object")
        return self

    @property
    def form(self) -> dict[str, Any]:
        """The engine's option."""
        return form_of(self) | ({"json_schema": {"type": "object"}} if self.json_object else {})


def form_of(asked: BaseModel) -> dict[str, Any]:
    """The engine's options of the forms that are given."""
    return {name: value for name in FORMS if (value := getattr(asked, name)) is not None}


class SamplingRequest(RequestModel):
    """How to write: OpenAI's fields, and ours that OpenAI has not."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = False
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], bounded(16)] | None = None
    stop_token_ids: Annotated[list[TokenId], bounded(64)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], BeforeValidator(at_most(1024))] | None = None
    json_schema: Schema | None = Field(None, validation_alias=AliasChoices("json_schema", "guided_json"))
    regex: Regex | None = Field(None, validation_alias=AliasChoices("regex", "guided_regex"))
    choice: Choice | None = Field(None, validation_alias=AliasChoices("choice", "guided_choice"))
    grammar: Grammar | None = Field(None, validation_alias=AliasChoices("grammar", "guided_grammar", "ebnf"))
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    receipt: bool | None = False

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        named = [*form_of(self), *(["structured_outputs"] if self.structured_outputs else [])]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two forms for one answer: give one of them")
        return self

    def sampling_options(self, vocab_size: int) -> TextOptions:
        """The options of the engine that these fields mean. Raises RequestError for ids outside the vocabulary."""
        options: dict[str, Any] = {name: getattr(self, name) for name in PLAIN}
        options |= form_of(self) if self.structured_outputs is None else self.structured_outputs.form
        options["top_k"] = 0 if self.top_k == -1 else self.top_k
        options["stop"] = self.stop or None
        if outside := next((i for i in self.stop_token_ids or () if i >= vocab_size), None):
            raise refused(f"stop_token_ids has {outside}: the tokens are below {vocab_size}", param="stop_token_ids")
        if self.logit_bias:
            options["logit_bias"] = {token_id(text, vocab_size): bias for text, bias in self.logit_bias.items()}
        return TextOptions(**{name: value for name, value in options.items() if value is not None})


def token_id(text: str, vocab_size: int) -> int:
    """A key of logit_bias as an id. Raises RequestError."""
    if not (text.isascii() and text.isdigit() and int(text) < vocab_size):
        raise refused(f"logit_bias has {text!r}: its keys are ids of tokens below {vocab_size}", param="logit_bias")
    return int(text)


def seeded(options: TextOptions, number: int) -> TextOptions:
    """The options of one of n texts: a seed of its own, so that they differ and can be had again."""
    seed = options.get("seed")
    return options if not isinstance(seed, int) else {**options, "seed": seed + number}
