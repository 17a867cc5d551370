"""vLLM's fields of tokens: the ids of prompts and answers, and how probable a prompt is."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from llamita.engine.handle import RequestHandle
from llamita.generation.logprobs import TokenLogprob
from llamita.generation.text_options import TextOptions
from llamita.server.openai.logprobs import finite
from llamita.server.sampling_request import SamplingRequest


class TokenRequest(SamplingRequest):
    """A request that may ask for them."""

    return_token_ids: bool | None = False
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> Self:
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are of whole answers: leave out stream, or ask for echo with logprobs")
        return self

    def sampling_options(self, vocab_size: int) -> TextOptions:
        """The options of the engine that its fields mean. Raises RequestError for ids outside the vocabulary."""
        options = super().sampling_options(vocab_size)
        return options if self.prompt_logprobs is None else {**options, "prompt_logprobs": self.prompt_logprobs}


def prompt_fields(handle: RequestHandle, asked: TokenRequest) -> dict[str, Any]:
    """What is said of a prompt, if it is asked for; nothing comes before its first token, which is null."""
    found: dict[str, Any] = {"prompt_token_ids": handle.prompt_token_ids} if asked.return_token_ids else {}
    if (most := asked.prompt_logprobs) is not None:
        found["prompt_logprobs"] = [None, *(_by_id(entry, most) for entry in handle.prompt_logprobs or ())]
    return found


def text_fields(token_ids: Sequence[int], asked: TokenRequest) -> dict[str, Any]:
    """The ids of what was written, if they are asked for."""
    return {"token_ids": list(token_ids)} if asked.return_token_ids else {}


def _by_id(entry: TokenLogprob, most: int) -> dict[str, Any]:
    """A token of a prompt and the most probable ones in its place, with their ranks, as far as those are known."""
    ranks = {one.token_id: rank for rank, one in enumerate(entry.top, 1)}
    return {
        str(one.token_id): {
            "logprob": finite(one.logprob),
            "rank": ranks.get(one.token_id),
            "decoded_token": one.text,
        }
        for one in (entry, *entry.top[:most])
    }
