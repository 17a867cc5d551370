"""The events of a streamed response: numbered, named, and each thing opened before it is filled and closed."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from llamita.server.errors import Failure
from llamita.server.openai.response_object import message_item, text_part
from llamita.server.sse import event


class ResponseEvents:
    """Writes the events of one response; `output` has the items that are over."""

    def __init__(self, response: dict[str, Any]) -> None:
        self._response = response
        self._number = 0
        self._message_id: str | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self.output: list[dict[str, Any]] = []

    @property
    def has_message(self) -> bool:
        """Whether a message has begun."""
        return self._message_id is not None

    def of_response(self, kind: str) -> bytes:
        """An event with the whole response as it is now."""
        return self._event(kind, response=self._response)

    def text(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        """More of the message, which begins with the first piece."""
        if self._message_id is None:
            self._message_id = f"msg_{uuid4().hex}"
            yield self._of_item("added", message_item(self._message_id, "in_progress", []))
            yield self._of_text("response.content_part.added", part=text_part("", []))
        if text:
            self._text.append(text)
            self._logprobs += logprobs
            yield self._of_text("response.output_text.delta", delta=text, logprobs=logprobs)

    def end_of_text(self, status: str) -> Iterator[bytes]:
        """The end of the message, if one has begun."""
        if self._message_id is None:
            return
        part = text_part("".join(self._text), self._logprobs)
        yield self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._of_text("response.content_part.done", part=part)
        yield from self._done(message_item(self._message_id, status, [part]))

    def call(self, item: dict[str, Any]) -> Iterator[bytes]:
        """A call, whole."""
        index = {"item_id": item["id"], "output_index": len(self.output)}
        yield self._of_item("added", {**item, "status": "in_progress", "arguments": ""})
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **index, delta=item["arguments"])
        yield self._event(f"{kind}.done", **index, arguments=item["arguments"])
        yield from self._done(item)

    def failed(self, failure: Failure) -> bytes:
        """The two last events of a response that fails: OpenAI has the error's fields in the event, Open Responses in
        its `error`, at which openai-python raises an APIError.
        """
        code, message = failure.code or failure.type, failure.message
        self._response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        fields = {"code": code, "message": message, "param": failure.param}
        last = self.of_response("response.failed")
        return last + self._event("error", **fields, error={"type": failure.type, **fields})

    def _done(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield self._of_item("done", item)
        self.output.append(item)

    def _of_item(self, what: str, item: dict[str, Any]) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self.output), item=item)

    def _of_text(self, kind: str, **fields: Any) -> bytes:
        index = {"item_id": self._message_id, "output_index": len(self.output), "content_index": 0}
        return self._event(kind, **index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)
