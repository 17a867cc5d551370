"""/v1/completions: texts in, given as text or ids, and what comes after them out."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llamita.generation.completion import Completion
from llamita.generation.logprobs import TokenLogprob
from llamita.server.answers import answered, submitted
from llamita.server.conversation import set_form
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.openai.answers import NOT_OVER, Chunks, ending_of, error_events, usage_of
from llamita.server.openai.logprobs import completion_logprobs, spelled_length
from llamita.server.openai.schemas import CompletionRequest
from llamita.server.openai.token_fields import prompt_fields, text_fields
from llamita.server.sampling_request import seeded
from llamita.server.state import model_of, parsed
from llamita.server.submission import Item, Submission


async def create_completion(request: Request) -> Response:
    """Continue texts."""
    asked = await parsed(request, CompletionRequest)
    model = await model_of(request, asked.model)
    count = len(asked.prompts) * (asked.n or 1)
    submission = await submitted(request, asked, model, lambda: completion_items(model, asked), count)
    return await answered(request, submission, CompletionAnswer(model, asked, submission), is_stream=bool(asked.stream))


def completion_items(model: ServedModel, asked: CompletionRequest) -> list[Item]:
    """The texts to write: n of the first prompt, n of the second, and so on. Raises RequestError and UsageError."""
    options = asked.sampling_options(model.texts.model.config.vocab_size)
    if asked.max_tokens is not None:
        options["max_tokens"] = asked.max_tokens
    schema = None if asked.response_format is None else asked.response_format.json_schema_option
    set_form(options, [], call=None, schema=schema)
    if asked.logprobs is not None:
        options["logprobs"] = asked.logprobs
    if asked.echo and (asked.logprobs is not None or asked.max_tokens == 0):
        options["prompt_logprobs"] = max(asked.logprobs or 0, asked.prompt_logprobs or 0)
    items = []
    for prompt in asked.prompts:
        ids = model.checked_ids(model.prompt_ids(prompt) if isinstance(prompt, str) else prompt, "prompt")
        items += [Item(ids, seeded(options, number)) for number in range(asked.n or 1)]
    return items


class CompletionAnswer:
    """The answer to one request, in OpenAI's words."""

    def __init__(self, model: ServedModel, asked: CompletionRequest, submission: Submission) -> None:
        self._model, self._asked, self._handles, self._submission = model, asked, submission.handles, submission
        self._texts = model.texts.tables.texts
        self._n = asked.n or 1
        self._chunks = Chunks("cmpl", "text_completion", model, asked.stream_options)

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(number, completion) for number, completion in enumerate(completions)]
        usage = usage_of(self._handles, self._n)
        return self._chunks.whole(choices, usage, self._submission.report(self._n))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks, as they are written."""
        written = [0] * len(self._handles)  # characters of each choice so far
        has_beginning = self._asked.echo or self._asked.return_token_ids
        silent = set(range(len(self._handles))) if has_beginning else set[int]()  # of whose prompts nothing is said yet
        async for number, delta in self._submission.deltas():
            if number in silent:
                silent.remove(number)
                yield self._beginning(number, written)
            if delta is None:
                yield self._ending(number)
            elif delta.text or delta.logprobs or self._asked.return_token_ids:
                fields = text_fields(delta.token_ids, self._asked)
                yield self._piece(number, delta.text, delta.logprobs, written, fields)
        yield self._chunks.end(self._handles, self._n)

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        return error_events(failure)

    def _beginning(self, number: int, written: list[int]) -> bytes:
        """The prompt of a choice, or its ids."""
        fields = prompt_fields(self._handles[number], self._asked) | text_fields((), self._asked)
        if not self._asked.echo:
            return self._piece(number, "", (), written, fields)
        return self._piece(number, self._prompt(number), self._prompt_entries(number), written, fields)

    def _piece(
        self,
        number: int,
        text: str,
        entries: Sequence[TokenLogprob],
        written: list[int],
        fields: Mapping[str, Any],
    ) -> bytes:
        ending = {**NOT_OVER, **fields}
        if self._asked.logprobs is None:
            return self._chunk(number, text, ending=ending)
        offset = written[number]
        written[number] += sum(spelled_length(entry, self._texts) for entry in entries)
        return self._chunk(number, text, completion_logprobs(entries, self._texts, offset), ending=ending)

    def _choice(self, number: int, completion: Completion) -> dict[str, Any]:
        text, noted = completion.text, None
        if self._asked.echo:
            text = self._prompt(number) + text
        if completion.logprobs is not None:
            before = self._prompt_entries(number) if self._asked.echo else []
            noted = completion_logprobs([*before, *completion.logprobs], self._texts)
        ending = ending_of(completion, self._model.texts.tokenizer)
        fields = prompt_fields(self._handles[number], self._asked) | text_fields(completion.token_ids, self._asked)
        return {"index": number, "text": text, "logprobs": noted, **ending, **fields}

    def _prompt(self, number: int) -> str:
        """The prompt of a choice, as text."""
        prompt = self._asked.prompts[number // self._n]
        return prompt if isinstance(prompt, str) else self._model.texts.tokenizer.decode(prompt)

    def _prompt_entries(self, number: int) -> list[TokenLogprob]:
        """The prompt's tokens; nothing comes before the first, so its log-probability is NaN."""
        handle = self._handles[number]
        first = handle.prompt_token_ids[0]
        return [TokenLogprob(first, self._texts.of(first), math.nan), *(handle.prompt_logprobs or ())]

    def _ending(self, number: int) -> bytes:
        ending = ending_of(self._handles[number].result(), self._model.texts.tokenizer)
        return self._chunk(number, "", ending=ending, extra=self._submission.last_report(self._n))

    def _chunk(
        self,
        number: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        *,
        ending: Mapping[str, Any] = NOT_OVER,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        return self._chunks.one({"index": number, "text": text, "logprobs": logprobs, **ending}, extra)
