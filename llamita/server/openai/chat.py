"""/v1/chat/completions: a conversation in, its next message out, whole or as it is written."""

import time
from collections.abc import AsyncGenerator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from llamita.generation.completion import Completion
from llamita.generation.logprobs import TokenLogprob
from llamita.server.answers import answered, submitted
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.openai.answers import error_events, usage_of
from llamita.server.openai.chat_prompt import chat_items
from llamita.server.openai.logprobs import chat_logprobs
from llamita.server.openai.schemas import ChatRequest
from llamita.server.sse import DONE, dumped, event
from llamita.server.state import model_of, parsed
from llamita.server.submission import Submission
from llamita.server.tool_text import ToolText
from llamita.structured.tool_calls import ToolCall


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    asked = await parsed(request, ChatRequest)
    model = await model_of(request, asked.model)
    submission = await submitted(request, asked, model, lambda: chat_items(model, asked), asked.n or 1)
    return await answered(request, submission, ChatAnswer(model, asked, submission), is_stream=bool(asked.stream))


class ChatAnswer:
    """The answer to one request, in OpenAI's words."""

    def __init__(self, model: ServedModel, asked: ChatRequest, submission: Submission) -> None:
        self._model, self._asked, self._submission = model, asked, submission
        self._texts = model.texts.tables.texts
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.system_fingerprint,
        }
        self._has_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        handles, n = self._submission.handles, len(self._submission.handles)
        choices = [self._choice(number, completion) for number, completion in enumerate(completions)]
        return {**self._head, "choices": choices, "usage": usage_of(handles, n), **self._submission.report(n)}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks, as they are written."""
        handles, n = self._submission.handles, len(self._submission.handles)
        for number in range(n):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        frames = [self._frame(number) for number in range(n)]
        held = [ToolText() if self._may_call else None for _ in range(n)]
        async for number, delta in self._submission.deltas():
            if delta is None:
                for piece in self._ending(number, held[number]):
                    yield piece
                continue
            tool_text = held[number]
            text = delta.text if tool_text is None else tool_text.push(delta.text)
            if self._asked.logprobs and delta.logprobs:
                yield self._chunk(number, {"content": text}, logprobs=delta.logprobs)
            elif text:
                before, after = frames[number]
                yield before + encode_basestring_ascii(text).encode() + after
        if self._has_usage:
            yield event({**self._head, "choices": [], "usage": usage_of(handles, n)})
        yield DONE

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        return error_events(failure)

    @property
    def _may_call(self) -> bool:
        return bool(self._asked.tools) and self._asked.tool_choice != "none"

    def _choice(self, number: int, completion: Completion) -> dict[str, Any]:
        calls = self._calls(completion)
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        if calls:
            message |= {"content": None, "tool_calls": [tool_call(call) for call in calls]}
        noted = completion.logprobs if self._asked.logprobs else None
        return {
            "index": number,
            "message": message,
            "logprobs": None if noted is None else chat_logprobs(noted, self._texts),
            "finish_reason": "tool_calls" if calls else completion.finish_reason,
        }

    def _calls(self, completion: Completion) -> list[ToolCall]:
        calls = completion.tool_calls
        return calls[:1] if self._asked.parallel_tool_calls is False else calls

    def _ending(self, number: int, held: ToolText | None) -> list[bytes]:
        """What comes when a choice is over: its calls or the text that might have been one, and why it ended."""
        handles = self._submission.handles
        completion = handles[number].result()
        calls, pieces = self._calls(completion), []
        if calls:
            listed = [{"index": index, **tool_call(call)} for index, call in enumerate(calls)]
            pieces.append(self._chunk(number, {"tool_calls": listed}))
        elif held is not None and (text := held.rest()):
            pieces.append(self._chunk(number, {"content": text}))
        finish = "tool_calls" if calls else completion.finish_reason
        extra = self._submission.report(len(handles)) if all(handle.is_over for handle in handles) else {}
        return [*pieces, self._chunk(number, {}, finish=finish, extra=extra)]

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprob] = (),
        finish: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        noted = chat_logprobs(logprobs, self._texts) if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": noted, "finish_reason": finish}
        usage = {"usage": None} if self._has_usage else {}
        return event({**self._head, "choices": [choice], **usage, **(extra or {})})

    def _frame(self, number: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in a plain chunk: most of a stream's cost is saved by it."""
        before, after = self._chunk(number, {"content": ""}).split(b'"content":""', 1)
        return before + b'"content":', after


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's words; its arguments are JSON text."""
    function = {"name": call.name, "arguments": dumped(call.arguments)}
    return {"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}
