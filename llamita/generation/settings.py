"""The settings of a call: how tokens are chosen, limits, speculation, and which outputs are returned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamita import checks
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.generation.sequence import listed_stops
from llamita.sampling.params import SamplingParams
from llamita.sampling.per_row import LARGEST, EachRow, PerRow
from llamita.structured.grammar import Grammar

DEFAULT_TOP_K = 50
DEFAULT_NEW_TOKENS = 20  # transformers' default max_length, which it counts from the prompt's end

# Keys of cache_config, and QuantizedCache's names for them. transformers' backend for it makes no difference here.
QUANTIZED: Mapping[str, str | None] = {
    "nbits": "bits", "q_group_size": "group", "residual_length": "residual", "backend": None,
}  # fmt: skip
# Settings of speculative decoding that the assistant's own generation config may set, with transformers' defaults.
DRAFTING_DEFAULTS: Mapping[str, Any] = {"num_assistant_tokens": 20, "assistant_confidence_threshold": 0.4}
COUNTS = (
    "num_beams", "num_return_sequences", "prefill_chunk_size", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "num_assistant_tokens", "assistant_early_exit",
)  # fmt: skip
MOST_TEXTS = 65_536
CACHES = (None, "dynamic", "static", "offloaded", "quantized")


def plain(value: Any) -> Any:
    """A number, a text or a list of numpy or torch as Python's own; any other value itself."""
    return value.tolist() if hasattr(value, "tolist") else value


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(SamplingParams):
    """How to continue: transformers' flags by their names and with their defaults, and what llamita adds.

    `max_new_tokens` goes before `max_length` (which counts the prompt); without both it is 20 new tokens.
    Sampling settings and the seed: one value, or one for each row. json_schema, regex, grammar (Lark or GBNF) and
    choice: the form of the written text, at most one of them; an EachRow gives one for each row. token_healing: cut a
    prompt that ends inside a token back to that token's start. They need a `tokenizer`.
    logprobs: record the log-probability of each token, and this many of the most probable alternatives.
    draft_tree: the draft model drafts a tree; (3, 2) is the 3 most probable tokens and the 2 best after each.
    num_assistant_tokens, assistant_confidence_threshold: None takes the assistant's generation config, else 20 and
    0.4.
    Raises UsageError for values that cannot be.
    """

    top_k: PerRow = DEFAULT_TOP_K
    max_new_tokens: int | None = None
    max_time: float | None = None  # seconds
    seed: int | Sequence[int] | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    stop_strings: str | Sequence[str] | None = None
    json_schema: Mapping[str, Any] | str | EachRow | None = None
    regex: str | EachRow | None = None
    grammar: str | Grammar | EachRow | None = None
    choice: Sequence[str] | EachRow | None = None
    token_healing: bool = False
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    guidance_scale: float | None = None
    use_cache: bool = True
    cache_implementation: str | None = None
    cache_config: Mapping[str, Any] | None = None
    prefill_chunk_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None
    assistant_confidence_threshold: float | None = None
    assistant_early_exit: int | None = None
    draft_tree: Sequence[int] | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and self._is_given(name):
                checks.count(name, value)
        for name in ("num_beams", "num_return_sequences"):
            if (value := getattr(self, name)) > MOST_TEXTS:
                raise UsageError(f"{name} is {value}: at most {MOST_TEXTS} texts are written side by side")
        if self.max_new_tokens is not None and type(self.max_new_tokens) is not int:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens!r}: it must be a whole number of at least 1")
        for name in ("length_penalty", "guidance_scale", "max_time", "assistant_confidence_threshold"):
            value: Any = getattr(self, name)
            if value is not None and self._is_given(name) and (not checks.is_number(value) or value != value):
                raise UsageError(f"{name} is {value!r}: it must be a number")
        if self.cache_implementation not in CACHES:
            known = ", ".join(name for name in CACHES if name)
            raise UsageError(f"cache_implementation {self.cache_implementation!r} is unknown: use one of {known}")
        self._check_cache_config()

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) is not getattr(type(self), name)  # by identity: True equals 1

    def _check_cache_config(self) -> None:
        given = self.cache_config or {}
        if given and self.cache_implementation != "quantized":
            raise UsageError('cache_config is of quantized caches: give cache_implementation="quantized" too')
        if unknown := sorted(given.keys() - QUANTIZED.keys()):
            raise UnsupportedError(f"cache_config has {unknown[0]!r}, which is not known: use {', '.join(QUANTIZED)}")

    @property
    def eos_token_ids(self) -> list[int]:
        """The end tokens as a list, whether one, several or none are given."""
        eos: Any = self.eos_token_id
        ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return [min(token, LARGEST) for token in ids]

    @property
    def padding(self) -> int | None:
        """The token that fills a row after its end: the padding token, else the first end token."""
        pad = self.pad_token_id
        pad = pad if pad is not None and pad >= 0 else next(iter(self.eos_token_ids), None)
        return None if pad is None else min(pad, LARGEST)

    @property
    def is_guided(self) -> bool:
        """Whether a negative prompt changes the logits."""
        return self.guidance_scale not in (None, 1)

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list; raises UsageError for an empty one."""
        return listed_stops(self.stop_strings)

    @property
    def recorded_outputs(self) -> tuple[str, ...]:
        """Which outputs of the model are recorded, to be returned."""
        names = ("attentions", "hidden_states") if self.return_dict_in_generate else ()
        return tuple(name for name in names if getattr(self, f"output_{name}"))

    def limit(self, prompt: int, embedded: int, config: LlamaConfig) -> int:
        """How many tokens to add to `prompt` ids, or to embeddings of `embedded` tokens: transformers' rule.

        Raises UsageError where that is none.
        """
        longest: Any = self.max_length
        if self.max_new_tokens is not None:
            limit = self.max_new_tokens
        elif longest is not None:
            limit = longest - max(prompt, embedded)
        else:
            limit = min(prompt + DEFAULT_NEW_TOKENS, config.max_position_embeddings) - prompt
        if limit < 1:
            raise UsageError(
                f"the input has {max(prompt, embedded)} tokens, and max_length or max_new_tokens leaves no room for "
                "another: raise it"
            )
        return min(limit, LARGEST)
