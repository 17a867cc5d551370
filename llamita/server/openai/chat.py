"""/v1/chat/completions: a conversation in, its next message out, whole or as it is written."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from llamita.generation.completion import Completion
from llamita.generation.logprobs import TokenLogprob
from llamita.server.answers import answered, submitted
from llamita.server.conversation import names_of
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.openai.answers import NOT_OVER, Chunks, ending_of, error_events, usage_of
from llamita.server.openai.chat_prompt import chat_items
from llamita.server.openai.logprobs import chat_logprobs
from llamita.server.openai.schemas import ChatRequest
from llamita.server.openai.token_fields import prompt_fields, text_fields
from llamita.server.sse import dumped
from llamita.server.state import model_of, parsed
from llamita.server.submission import Submission
from llamita.server.tool_text import Piece, TextReader, ToolUse, text_before_calls


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
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        self._chunks = Chunks("chatcmpl", kind, model, asked.stream_options)
        self._tools = ToolUse(names_of(asked.callable_tools), 1 if asked.parallel_tool_calls is False else None)
        self._begun_calls: dict[int, int] = {}  # of each choice, the index of the last

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        handles, n = self._submission.handles, len(self._submission.handles)
        choices = [self._choice(number, completion) for number, completion in enumerate(completions)]
        fields = prompt_fields(handles[0], self._asked) | self._submission.report(n)
        return self._chunks.whole(choices, usage_of(handles, n), fields)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks, as they are written."""
        handles, n = self._submission.handles, len(self._submission.handles)
        for number in range(n):
            fields = prompt_fields(handles[0], self._asked) if number == 0 else {}
            yield self._chunk(number, {"role": "assistant", "content": ""}, extra=fields)
        frames = [self._frame(number) for number in range(n)]
        readers = [self._tools.reader() for _ in range(n)]
        async for number, delta in self._submission.deltas():
            if delta is None:
                for piece in self._ending(number, readers[number]):
                    yield piece
                continue
            pieces = readers[number].push(delta.text)
            if delta.logprobs or self._asked.return_token_ids:
                text = "".join(piece.text for piece in pieces if piece.kind == "text")
                ending = {**NOT_OVER, **text_fields(delta.token_ids, self._asked)}
                yield self._chunk(number, {"content": text}, logprobs=delta.logprobs, ending=ending)
                pieces = [piece for piece in pieces if piece.kind != "text"]
            for piece in pieces:
                if piece.kind != "text":
                    yield self._called(number, piece)
                elif piece.text:
                    before, after = frames[number]
                    yield before + encode_basestring_ascii(piece.text).encode() + after
        yield self._chunks.end(handles, n)

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        return error_events(failure)

    def _choice(self, number: int, completion: Completion) -> dict[str, Any]:
        calls = self._tools.calls_of(completion)
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        if calls:
            before = text_before_calls(completion.text) or None
            called = [call_data(call.name, dumped(call.arguments)) for call in calls]
            message |= {"content": before, "tool_calls": called}
        noted = completion.logprobs if self._asked.logprobs else None
        return {
            "index": number,
            "message": message,
            "logprobs": None if noted is None else chat_logprobs(noted, self._texts),
            **ending_of(completion, self._model.texts.tokenizer, is_called=bool(calls)),
            **text_fields(completion.token_ids, self._asked),
        }

    def _ending(self, number: int, reader: TextReader) -> list[bytes]:
        """What comes when a choice is over: its calls or the text that might have been one, and why it ended."""
        handles = self._submission.handles
        completion = handles[number].result()
        calls, pieces = self._tools.calls_of(completion), []
        for piece in reader.rest(calls):
            is_text = piece.kind == "text"
            pieces.append(self._chunk(number, {"content": piece.text}) if is_text else self._called(number, piece))
        ending = ending_of(completion, self._model.texts.tokenizer, is_called=bool(calls))
        extra = self._submission.last_report(len(handles))
        return [*pieces, self._chunk(number, {}, ending=ending, extra=extra)]

    def _called(self, number: int, piece: Piece) -> bytes:
        """The chunk with a piece of a call: its name first, then its arguments."""
        begun = self._begun_calls
        if piece.kind == "call":
            begun[number] = begun.get(number, -1) + 1
            call = call_data(piece.text, "")
        else:
            call = {"function": {"arguments": piece.text}}
        return self._chunk(number, {"tool_calls": [{"index": begun[number], **call}]})

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprob] = (),
        ending: Mapping[str, Any] = NOT_OVER,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        noted = chat_logprobs(logprobs, self._texts) if logprobs else None
        return self._chunks.one({"index": number, "delta": delta, "logprobs": noted, **ending}, extra)

    def _frame(self, number: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in a plain chunk: most of a stream's cost is saved by it."""
        before, after = self._chunk(number, {"content": ""}).split(b'"content":""', 1)
        return before + b'"content":', after


def call_data(name: str, arguments: str) -> dict[str, Any]:
    """A call in OpenAI's words; its arguments are JSON text."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}
