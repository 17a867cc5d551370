"""The options of `LLM` and the engine, in OpenAI's words, and the requests that they mean."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from operator import index
from typing import Any, TypedDict, cast

from torch import Tensor

from llamita import checks
from llamita.checks import quoted, remedy
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.generation.prefix_cache import Prefix
from llamita.generation.request import Criterion, GenerationRequest, left_padded
from llamita.generation.sequence import Ending
from llamita.generation.settings import GenerationSettings, plain
from llamita.habits import WRITING
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.kinds import check_functions
from llamita.sampling.sampler import seeds_of
from llamita.structured.forms import FORMS, check_forms
from llamita.structured.grammar import Grammar
from llamita.structured.token_tables import TokenTables
from llamita.tokenizer.protocol import Tokenizer


class TextOptions(TypedDict, total=False):
    """How to write; what is not given comes from the checkpoint's generation_config.json.

    max_tokens: the most new tokens; without it the text may fill the context; 0 is for prompt_logprobs alone.
    min_tokens: no end token is written before this many others; a stop string ends the text anyway. temperature: 0 is
    greedy; any of temperature, top_k (0 keeps all), top_p (1 keeps all) and min_p makes it draw. seed: the same seed
    gives the same text; one number for all prompts, or one each. stop: texts that end the answer and are no part of it.
    stop_token_ids: tokens that end it as end tokens do. include_stop_str_in_output: what ends the answer is part of it,
    if it is text. ignore_eos: end tokens end nothing, so that an answer is as long as it may be.
    repetition_penalty counts prompt and answer, presence_penalty and frequency_penalty (OpenAI's) the answer alone.
    json_schema, regex, grammar (Lark or GBNF) and choice: the form that the answer must have; one of them at most.
    logprobs: record the log-probability of each token, and this many of the most probable alternatives.
    prompt_logprobs: the same for the prompt's tokens from the second on; it takes another pass over the prompt.
    heal: token healing, which cuts a prompt that ends inside a token back to that token's start and writes it again.
    num_beams, length_penalty, guidance_scale, prompt_lookup_num_tokens, assistant_early_exit, stopping_criteria: as
    in transformers. negative_prompt: the text that guidance leads away from.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool
    ignore_eos: bool
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | Grammar | None
    choice: Sequence[str] | None
    logprobs: int | None
    prompt_logprobs: int | None
    heal: bool
    num_beams: int | None
    length_penalty: float | None
    guidance_scale: float | None
    negative_prompt: str | Sequence[int] | None
    prompt_lookup_num_tokens: int | None
    assistant_early_exit: int | None
    stopping_criteria: Sequence[Criterion] | None


Watch = Callable[[Tensor, Tensor], object]  # sees a step's logits (B, V), as the model gave them, and its tokens (B,)
Prompt = str | Sequence[int]  # a text, or its token ids
DRAWING = ("temperature", "top_k", "top_p", "min_p")  # any of them makes a call draw
# What has the same name and meaning in the settings.
SAME = (
    "seed", "json_schema", "regex", "grammar", "choice", "logprobs", "num_beams", "length_penalty", "guidance_scale",
)  # fmt: skip
DRAFTING = ("prompt_lookup_num_tokens", "assistant_early_exit")
# What only the loops of `generation` do, and not the engine.
OF_LOOPS = (*DRAFTING, "num_beams", "guidance_scale", "negative_prompt", "stopping_criteria")
# Defaults of `LLM` where the settings have transformers': no top-k filter; short drafts of any confidence.
NEUTRAL: Mapping[str, Any] = {"top_k": 0}
DRAFTS: Mapping[str, Any] = {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
SETTINGS = (*DRAWING, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")


def checked(options: TextOptions) -> TextOptions:
    """The options with numbers and lists of numpy and torch as Python's own. Raises UsageError as `check` does."""
    found = {name: plain(value) for name, value in options.items()}
    if isinstance(bias := found.get("logit_bias"), Mapping):
        found["logit_bias"] = {plain(token): plain(value) for token, value in bias.items()}
    plain_options = cast("TextOptions", found)
    check(plain_options)
    return plain_options


def check(options: TextOptions) -> None:
    """Raise UsageError for an unknown option, and for some that are wrong whatever the model."""
    if unknown := options.keys() - TextOptions.__annotations__.keys():
        raise _unknown(min(unknown))
    floor = 1 if options.get("prompt_logprobs") is None else 0
    if (most := options.get("max_tokens")) is not None and (type(most) is not int or most < floor):
        raise UsageError(f"max_tokens is {quoted(most)}: it must be a whole number, at least {floor}")
    _check_least(options, most)
    _check_ending(options)
    if (beams := options.get("num_beams")) is not None:
        checks.count("num_beams", beams)
    for name in ("logprobs", "prompt_logprobs"):
        if (count := options.get(name)) is not None and (type(count) is not int or count < 0):
            raise UsageError(f"{name} is {quoted(count)}: give a count of tokens, 0 tells of those of the text alone")
    _check_texts(options)
    forms = [name for name in FORMS if options.get(name) is not None]
    if forms:
        check_forms(forms, heals=bool(options.get("heal")))


def _check_texts(options: TextOptions) -> None:
    stop, regex = options.get("stop"), options.get("regex")
    listed = [stop] if isinstance(stop, str) else stop
    if listed is not None and not (isinstance(listed, Iterable) and all(isinstance(one, str) for one in listed)):
        raise UsageError(f"stop is {quoted(stop)}: give a text, or a list of texts")
    if not isinstance(regex, str | None):
        raise UsageError(f"regex is {quoted(regex)}: give the text of a regular expression")
    ids = options.get("stop_token_ids")
    if ids is not None and not (isinstance(ids, list | tuple) and all(type(one) is int for one in ids)):
        raise UsageError(f"stop_token_ids is {quoted(ids)}: give a list of token ids")


def _check_least(options: TextOptions, most: int | None) -> None:
    if (least := options.get("min_tokens")) is None:
        return
    if type(least) is not int or least < 0:
        raise UsageError(f"min_tokens is {quoted(least)}: it must be a whole number, 0 or above")
    if most is not None and least > most:
        raise UsageError(f"min_tokens is {least} and max_tokens {most}: the least must be at most the most")


def _check_ending(options: TextOptions) -> None:
    name = next((name for name in ("min_tokens", "ignore_eos") if options.get(name)), None)
    if name and (form := next((name for name in FORMS if options.get(name) is not None), None)):
        value = quoted(options.get(name))
        raise UsageError(f"{name} is {value}, and {form} says when the answer is over: give one of them")


def _unknown(name: str) -> UsageError:
    """The error for an option that there is not: what to do instead, or which one may have been meant."""
    settings = {item.name for item in fields(GenerationSettings)}
    here = {f"llm.model.generate(ids, {name}=...) takes it, as in transformers": settings}
    known = TextOptions.__annotations__
    return UsageError(f"there is no option {name!r}{remedy(name, {**WRITING, **here}, known)}")


def are_of_engine(options: TextOptions, config: LlamaConfig) -> bool:
    """Whether the engine does all that these options ask for."""
    return not any(options.get(name) for name in OF_LOOPS) and not config.rope_parameters.depends_on_length


def prompts_of(given: Any) -> tuple[list[Any], bool]:
    """One prompt or several as a list, and whether it is one: a text, or ids (a list, an array, a tensor).

    Raises UsageError for what is neither a prompt nor some.
    """
    found = _listed(given)
    is_one = isinstance(found, str) or (len(found) > 0 and _is_id(found[0]))
    return [found] if is_one else list(found), is_one


def _listed(prompt: Any) -> str | list[Any]:
    if isinstance(prompt, str):
        return prompt
    try:
        if isinstance(prompt, bytes | bytearray | Mapping):
            raise TypeError
        return prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
    except TypeError:
        raise _no_prompt(prompt) from None


def _is_id(value: Any) -> bool:
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0  # an array of ids has the method too


def _no_prompt(given: Any) -> UsageError:
    return UsageError(f"a prompt is a text or a list of token ids, not {quoted(given)}")


def token_ids(prompt: Prompt, tokenizer: Tokenizer, context_length: int, vocab_size: int) -> list[int]:
    """The token ids of a prompt. Raises UsageError for none, for too many, and for ids outside the vocabulary."""
    listed = _listed(prompt)
    try:
        ids = tokenizer.encode(listed) if isinstance(listed, str) else [index(token_id) for token_id in listed]
    except TypeError:
        raise _no_prompt(prompt) from None
    if not ids:
        raise UsageError("the prompt is empty: give the model a text to continue")
    if len(ids) >= context_length:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, the model reads at most {context_length} and needs "
            "room to write: shorten it"
        )
    if outside := [i for i in ids if not 0 <= i < vocab_size]:
        raise UsageError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")
    return ids


def of_rows(options: TextOptions, rows: int) -> list[TextOptions]:
    """The options of each of several prompts: of a list of seeds, its own."""
    return [{**options, "seed": seed} for seed in seeds_of(options.get("seed"), rows)]


def settings_of(
    options: TextOptions, saved: Mapping[str, Any], tokenizer: Tokenizer, *, reads_on: bool, is_plain: bool
) -> GenerationSettings:
    """The settings that these options mean, over what the checkpoint has saved.

    reads_on: the text goes on from its prompt, which may be healed. is_plain: nothing drafts ahead.
    """
    given = {name: value for name in SETTINGS if (value := options.get(name)) is not None}
    draws = saved.get("do_sample", False) or any(name in given for name in DRAWING)
    known = {name: saved[name] for name in SETTINGS if saved.get(name) is not None}
    draws = draws and {**known, **given}.get("temperature") != 0  # greedy: filters would keep the best token anyway
    same = {name: value for name in SAME if (value := options.get(name)) is not None}
    ahead = {name: value for name in DRAFTING if (value := options.get(name)) is not None}
    ahead = {} if is_plain else {**DRAFTS, **ahead}
    return GenerationSettings(
        **{**NEUTRAL, **known, **given, **same, **ahead},
        do_sample=draws,
        eos_token_id=None if options.get("ignore_eos") else list(tokenizer.eos_token_ids),
        pad_token_id=tokenizer.pad_token_id or 0,
        stop_strings=options.get("stop"),
        min_new_tokens=options.get("min_tokens") or None,
        token_healing=reads_on and bool(options.get("heal")),
    )


@dataclass
class TextModel:
    """A model with its tokenizer, which turns texts and options into requests.

    draft: a model that drafts ahead. max_model_len: a limit below the model's own. tables: of the tokenizer's tokens.
    adapter: the digest of the adapter that is merged into the model, if one is. adapters: the same model with others.
    """

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    draft: LlamaForCausalLM | None = field(default=None, kw_only=True)
    max_model_len: int | None = field(default=None, kw_only=True)
    adapter: str | None = field(default=None, kw_only=True)
    adapters: Mapping[str, "TextModel"] = field(default_factory=dict, kw_only=True)
    shared_tables: InitVar[TokenTables | None] = field(default=None, kw_only=True)
    tables: TokenTables = field(init=False)

    def __post_init__(self, shared_tables: TokenTables | None) -> None:
        self.tables = TokenTables(self.tokenizer) if shared_tables is None else shared_tables

    def limited(self, max_model_len: int) -> "TextModel":
        """The same model with a limit and without its draft; the tables, which take a while, are shared."""
        adapters = {name: one.limited(max_model_len) for name, one in self.adapters.items()}
        return replace(self, draft=None, max_model_len=max_model_len, adapters=adapters, shared_tables=self.tables)

    def with_adapter(self, name: str | None) -> "TextModel":
        """The model with the adapter of this name, or itself for None. Raises UsageError for an unknown one."""
        if name is None:
            return self
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise UsageError(f"there is no adapter {name!r}: the model was loaded with {known}")
        return self.adapters[name]

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its continuation have together."""
        longest = self.model.config.max_position_embeddings
        return longest if self.max_model_len is None else min(longest, self.max_model_len)

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. Raises UsageError for none, for too many, and for ids outside the vocabulary."""
        return token_ids(prompt, self.tokenizer, self.context_length, self.model.config.vocab_size)

    def request(
        self,
        prompts: Sequence[list[int]],
        options: TextOptions,
        *,
        reads_on: bool,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
    ) -> GenerationRequest:
        """The request to write after these prompts; `reads_on`: its text continues theirs.

        Raises UsageError for options that are wrong.
        """
        options = checked(options)
        is_plain = prefix is not None or watch is not None or options.get("logprobs") is not None
        is_plain = is_plain or (self.draft is None and options.keys().isdisjoint(DRAFTING))
        settings = settings_of(
            options, self.model.generation_config, self.tokenizer, reads_on=reads_on, is_plain=is_plain
        )
        ids, mask = left_padded(prompts, settings.padding or 0, self.model.device)
        most = options.get("max_tokens")
        if most is None:
            most = self.model.generation_config.get("max_new_tokens") or self.context_length
        return GenerationRequest(
            model=self.model,
            settings=settings,
            input_ids=ids,
            mask=mask,
            limit=lambda length, _: min(most, self.context_length - length),
            prompts=list(prompts),
            reads_on=reads_on,
            ending=Ending(tuple(options.get("stop_token_ids") or ()), bool(options.get("include_stop_str_in_output"))),
            prompt_logprobs=options.get("prompt_logprobs"),
            tables=self.tables,
            criteria=check_functions("stopping_criteria", options.get("stopping_criteria") or ()),
            assistant=None if is_plain else self.draft,
            negative=self._negative(options, len(prompts)),
            prefix=prefix,
            observers=() if watch is None else (lambda logits, _, tokens: watch(logits, tokens),),
        )

    def _negative(self, options: TextOptions, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """Ids (B, T) of the prompt to lead away from, and its mask; None where there is none."""
        prompt = options.get("negative_prompt")
        return (None, None) if prompt is None else left_padded([self.token_ids(prompt)] * rows, 0, self.model.device)
