"""The options of `LLM`, in OpenAI's words, and the settings that they mean."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from llamita.errors import UsageError
from llamita.generation.request import Criterion
from llamita.generation.settings import GenerationSettings
from llamita.sampling.sampler import seeds_of
from llamita.structured.forms import FORMS, check_forms
from llamita.structured.grammar import Grammar
from llamita.tokenizer.protocol import Tokenizer


class TextOptions(TypedDict, total=False):
    """How to write; what is not given comes from the checkpoint's generation_config.json.

    max_tokens: at most so many, without it to the end of the context. temperature: 0 takes the likeliest token each
    time; any of temperature, top_k (0 keeps all), top_p (1 keeps all) and min_p makes it draw. seed: the same seed,
    the same text; one number for all prompts, or one each. stop: texts that end the answer and are not part of it.
    repetition_penalty is of prompt and answer, presence_penalty and frequency_penalty (OpenAI's) of the answer alone.
    json_schema, regex, grammar (Lark) and choice: the form that the answer must have; one of them at most.
    logprobs: note how likely each token was, and so many of the likeliest beside it; prompt_logprobs: the same of the
    prompt's tokens from its second on, which takes another pass over it. heal: a prompt that ends inside
    what the model knows as one token is taken back to where that begins; the answer reads on from the prompt.
    num_beams, length_penalty, guidance_scale, prompt_lookup_num_tokens, assistant_early_exit, stopping_criteria:
    transformers' words and meanings; negative_prompt is what guidance leads away from.
    """

    max_tokens: int | None
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


Prompt = str | Sequence[int]  # a text, or its token ids
DRAWING = ("temperature", "top_k", "top_p", "min_p")  # any of them makes a call draw
# What has the same name and meaning in the settings.
SAME = (
    "seed", "json_schema", "regex", "grammar", "choice", "logprobs", "num_beams", "length_penalty", "guidance_scale",
)  # fmt: skip
GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit")
# Defaults of `LLM` where the settings have transformers': no top-k filter; short drafts of any confidence.
NEUTRAL: Mapping[str, Any] = {"top_k": 0}
DRAFTS: Mapping[str, Any] = {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
SETTINGS = (*DRAWING, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")


def check(options: TextOptions) -> None:
    """Raise UsageError for an unknown option, and for some that are wrong whatever the model."""
    if unknown := options.keys() - TextOptions.__annotations__.keys():
        nearest = difflib.get_close_matches(min(unknown), TextOptions.__annotations__, n=1, cutoff=0.0)[0]
        raise UsageError(f"there is no option {min(unknown)!r}: did you mean {nearest!r}?")
    if (most := options.get("max_tokens")) is not None and (type(most) is not int or most < 1):
        raise UsageError(f"max_tokens is {most!r}: it must be a whole number, at least 1")
    for name in ("logprobs", "prompt_logprobs"):
        if (count := options.get(name)) is not None and (type(count) is not int or count < 0):
            raise UsageError(f"{name} is {count}: give a count of tokens, 0 tells of those of the text alone")
    forms = [name for name in FORMS if options.get(name) is not None]
    if forms:
        check_forms(forms, heals=bool(options.get("heal")))


def token_ids(prompt: Prompt, tokenizer: Tokenizer, context_length: int, vocab_size: int) -> list[int]:
    """The token ids of a prompt. Raises UsageError for none, for too many, and for ids outside the vocabulary."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token_id) for token_id in prompt]
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

    reads_on: the text goes on from its prompt, which may be healed. is_plain: nothing guesses ahead.
    """
    given = {name: value for name in SETTINGS if (value := options.get(name)) is not None}
    draws = saved.get("do_sample", False) or any(name in given for name in DRAWING)
    known = {name: saved[name] for name in SETTINGS if saved.get(name) is not None}
    same = {name: value for name in SAME if (value := options.get(name)) is not None}
    ahead = {name: value for name in GUESSING if (value := options.get(name)) is not None}
    ahead = {} if is_plain else {**DRAFTS, **ahead}
    return GenerationSettings(
        **{**NEUTRAL, **known, **given, **same, **ahead},
        do_sample=draws,
        eos_token_id=list(tokenizer.eos_token_ids),
        pad_token_id=tokenizer.pad_token_id or 0,
        stop_strings=options.get("stop"),
        token_healing=reads_on and bool(options.get("heal")),
    )
