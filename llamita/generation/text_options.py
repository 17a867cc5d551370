"""What one asks of a text: the options of `LLM`, and what they mean for its distribution and its form."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from llamita.errors import UsageError
from llamita.generation.sequence import listed_stops
from llamita.sampling.params import SamplingParams
from llamita.structured.grammar import Grammar, choice, json_schema, lark, regex


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


DRAWING = ("temperature", "top_k", "top_p", "min_p")  # any of them makes a call draw
SETTINGS = (*DRAWING, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
FORMS: Mapping[str, Callable[[Any], Grammar]] = {
    "json_schema": json_schema,
    "regex": regex,
    "grammar": lambda given: given if isinstance(given, Grammar) else lark(given),
    "choice": choice,
}


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
    check_forms([name for name in FORMS if options.get(name) is not None], heals=bool(options.get("heal")))


def check_forms(names: Sequence[str], *, heals: bool) -> None:
    """Raise UsageError where an answer is asked to have two forms, or one that would begin inside the prompt."""
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} are two forms for one answer: give one of them")
    if names and heals:
        raise UsageError(f"{names[0]} is of the answer alone, and healing begins inside the prompt: give one of them")


def settings(options: TextOptions, saved: Mapping[str, Any], eos_token_ids: Sequence[int]) -> SamplingParams:
    """What shapes the distribution: the options over what the checkpoint has saved."""
    given = {name: value for name in SETTINGS if (value := options.get(name)) is not None}
    draws = saved.get("do_sample", False) or any(name in given for name in DRAWING)
    known = {name: saved[name] for name in SETTINGS if saved.get(name) is not None}
    return SamplingParams(do_sample=draws, eos_token_id=list(eos_token_ids), **{**known, **given})


def form(options: TextOptions | Mapping[str, Any]) -> Grammar | None:
    """The form that the answer must have, or None."""
    name = next((name for name in FORMS if options.get(name) is not None), None)
    return None if name is None else FORMS[name](options.get(name))


def stops(options: TextOptions) -> tuple[str, ...]:
    """The texts that end the answer."""
    return tuple(listed_stops(options.get("stop")))
