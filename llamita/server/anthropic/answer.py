"""The answer of /v1/messages: whole, or as the events that the anthropic SDK puts together."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any
from uuid import uuid4

from llamita.generation.completion import Completion
from llamita.server.anthropic.errors import error_body
from llamita.server.anthropic.schemas import MessageRequest
from llamita.server.conversation import names_of
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.sse import event
from llamita.server.submission import Submission
from llamita.server.tool_text import Piece, ToolUse, text_before_calls


class MessageAnswer:
    """The answer to one request, in Anthropic's words."""

    def __init__(self, model: ServedModel, asked: MessageRequest, submission: Submission, request_id: str) -> None:
        self._asked, self._handle, self._request_id = asked, submission.handles[0], request_id
        self._submission = submission
        choice = asked.tool_choice
        most = 1 if choice is not None and choice.disable_parallel_tool_use else None
        self._tools = ToolUse(names_of(asked.callable_tools), most)
        self._head = {"id": f"msg_{uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": model.name}

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        (completion,) = completions
        calls = self._tools.calls_of(completion)
        text = text_before_calls(completion.text) if calls else completion.text
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        content += [tool_use(call.name, call.arguments) for call in calls]
        return {
            **self._head,
            "content": content,
            **self._ending(completion),
            "usage": self._usage(completion),
            **self._submission.report(1),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events: a block of text, if there is any, then a block for each call."""
        yield named("message_start", message=self._begun())
        yield named("ping")
        reader, blocks = self._tools.reader(), Blocks()
        async for _, delta in self._submission.deltas():
            if delta is not None:
                for one in blocks.events(reader.push(delta.text)):
                    yield one
        completion = self._handle.result()
        for one in blocks.events(reader.rest(self._tools.calls_of(completion))):
            yield one
        for one in blocks.end():
            yield one
        ending, usage = self._ending(completion), self._usage(completion)
        yield named("message_delta", delta=ending, usage=usage, **self._submission.report(1))
        yield named("message_stop")

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        return event(error_body(failure, self._request_id), "error")

    def _begun(self) -> dict[str, Any]:
        usage = self._counts(len(self._handle.prompt_token_ids), 0)
        return {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}

    def _ending(self, completion: Completion) -> dict[str, Any]:
        """Why the answer ended."""
        matched = completion.stop_reason if isinstance(completion.stop_reason, str) else None
        if completion.tool_calls:
            reason = "tool_use"
        elif completion.finish_reason == "length":
            is_full = len(completion.token_ids) < self._asked.max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        else:
            reason = "end_turn" if matched is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": matched if reason == "stop_sequence" else None}

    def _usage(self, completion: Completion) -> dict[str, int]:
        cached = self._handle.metrics.cached_tokens
        counts = self._counts(len(completion.prompt_token_ids) - cached, cached)
        return {**counts, "output_tokens": len(completion.token_ids)}

    def _counts(self, read: int, cached: int) -> dict[str, int]:
        """`usage` so far: Anthropic counts the cached tokens of a prompt apart."""
        cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
        return {"input_tokens": read, **cache, "output_tokens": 0}


class Blocks:
    """The blocks of a streamed answer, of texts and of calls, one after another."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""

    def events(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """The events of some pieces."""
        for kind, text in pieces:
            if kind == "call":
                yield from self._begin(tool_use(text, {}))
            elif kind == "arguments":
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            elif text:
                if self._kind != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})

    def end(self) -> Iterator[bytes]:
        """The end of the block that is written, if there is one."""
        if self._kind:
            yield named("content_block_stop", index=self._index)
        self._kind = ""

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.end()
        self._index, self._kind = self._index + 1, block["type"]
        yield named("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named("content_block_delta", index=self._index, delta=delta)


def named(name: str, **fields: Any) -> bytes:
    """An event of a type, which is its name too."""
    return event({"type": name, **fields}, name)


def tool_use(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call as a block."""
    return {"type": "tool_use", "id": f"toolu_{uuid4().hex[:24]}", "name": name, "input": arguments}
