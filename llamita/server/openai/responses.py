"""/v1/responses, stateless: nothing is kept, so a conversation is sent whole every time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.engine.handle import Delta
from llamita.generation.completion import Completion
from llamita.server.answers import answered, submitted
from llamita.server.conversation import conversation_ids, names_of, set_form
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.openai.response_events import ResponseEvents
from llamita.server.openai.response_object import (
    call_item,
    message_item,
    part_logprobs,
    response_object,
    response_usage,
    text_part,
)
from llamita.server.openai.response_request import ResponseRequest
from llamita.server.sse import dumped
from llamita.server.state import model_of, parsed
from llamita.server.submission import Item, Submission
from llamita.server.tool_text import Piece, ToolUse, text_before_calls


async def create_response(request: Request) -> Response:
    """Answer a conversation of items."""
    asked = await parsed(request, ResponseRequest)
    model = await model_of(request, asked.model)
    submission = await submitted(request, asked, model, lambda: [response_text(model, asked)])
    return await answered(request, submission, ResponseAnswer(model, asked, submission), is_stream=bool(asked.stream))


async def count_input_tokens(request: Request) -> Response:
    """How many tokens a conversation has, without an answer."""
    asked = await parsed(request, ResponseRequest)
    model = await model_of(request, asked.model)
    ids = await asyncio.to_thread(conversation_ids, model, asked.messages(), asked.callable_tools, param="input")
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(ids)})


def response_text(model: ServedModel, asked: ResponseRequest) -> Item:
    """The text to write. Raises RequestError and UsageError."""
    tools = asked.callable_tools
    ids = conversation_ids(model, asked.messages(), tools, param="input")
    options = asked.sampling_options(model.texts.model.config.vocab_size)
    if asked.max_output_tokens is not None:
        options["max_tokens"] = asked.max_output_tokens
    if asked.has_logprobs:
        options["logprobs"] = asked.top_logprobs or 0
    form = asked.text.format if asked.text is not None else None
    schema = None if form is None else form.json_schema_option
    set_form(options, tools, call=asked.forced_call, schema=schema)
    return Item(ids, options, reads_on=False, tools=names_of(tools))


class ResponseAnswer:
    """The answer to one request, in the words of the Responses API."""

    def __init__(self, model: ServedModel, asked: ResponseRequest, submission: Submission) -> None:
        self._asked, self._submission = asked, submission
        self._texts = model.texts.tables.texts
        self._tools = ToolUse(names_of(asked.callable_tools), 1 if asked.parallel_tool_calls is False else None)
        self._response = response_object(model, asked)
        self._events = ResponseEvents(self._response, asked.namespaces)

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        (completion,) = completions
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        if calls := self._tools.calls_of(completion):
            before = text_before_calls(completion.text)
            output = [message_item(f"msg_{uuid4().hex}", "completed", [text_part(before, [])])] if before else []
            spaces = self._asked.namespaces
            output += [call_item(call.name, dumped(call.arguments), "completed", spaces) for call in calls]
        else:
            part = text_part(completion.text, part_logprobs(completion.logprobs, self._texts))
            output = [message_item(f"msg_{uuid4().hex}", status, [part])]
        return self._ended(status, output)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, in the order that clients rely on."""
        events, reader, noted = self._events, self._tools.reader(), list[dict[str, Any]]()
        yield events.of_response("response.created")
        yield events.of_response("response.in_progress")
        async for _, delta in self._submission.deltas():
            if delta is not None:
                noted += self._noted(delta)  # a token may have no text, or a part of what is held
                for piece in (one for one in reader.push(delta.text) if one.text):
                    for one in events.piece(piece, noted):
                        yield one
                    noted = [] if piece.kind == "text" else noted
        completion = self._submission.handles[0].result()
        calls = self._tools.calls_of(completion)
        rest = reader.rest(calls)
        is_cut = reader.calls > len(calls)
        if not rest and (not events.has_item or (noted and not calls and not is_cut)):
            rest = [Piece("text", "")]
        for piece in rest:
            for one in events.piece(piece, noted if piece.kind == "text" else []):
                yield one
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        for one in events.end("completed" if calls else "incomplete" if is_cut else status):
            yield one
        self._ended(status, events.output)
        yield events.of_response(f"response.{status}")

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        return self._events.failed(failure)

    def _noted(self, delta: Delta) -> list[dict[str, Any]]:
        return part_logprobs(delta.logprobs, self._texts) if self._asked.has_logprobs else []

    def _ended(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        handles = self._submission.handles
        self._response |= {"status": status, "output": output, "completed_at": int(time.time())}
        if status == "incomplete":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response |= {"usage": response_usage(handles), **self._submission.report(1)}
        return self._response
