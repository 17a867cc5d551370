"""The events of a streamed response: numbered, named, and each thing opened before it is filled and closed."""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from llamita.server.errors import Failure
from llamita.server.openai.response_object import call_item, message_item, text_part
from llamita.server.sse import event
from llamita.server.tool_text import Piece


class ResponseEvents:
    """Writes the events of one response; `output` has the items that are over.

    namespaces: of the functions that have one, by full name.
    """

    def __init__(self, response: dict[str, Any], namespaces: Mapping[str, tuple[str, str]]) -> None:
        self._response, self._namespaces = response, namespaces
        self._number = 0
        self._item: dict[str, Any] | None = None  # the one that is written
        self.output: list[dict[str, Any]] = []

    @property
    def has_item(self) -> bool:
        """Whether a message or a call has begun."""
        return self._item is not None or bool(self.output)

    def of_response(self, kind: str) -> bytes:
        """An event with the whole response as it is now."""
        return self._event(kind, response=self._response)

    def piece(self, piece: Piece, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        """More of the message or of the call that is written, or the beginning of the next one."""
        if piece.kind == "call":
            yield from self._begin(call_item(piece.text, "", "in_progress", self._namespaces))
        elif piece.kind == "arguments":
            assert self._item is not None
            self._item["arguments"] += piece.text
            yield self._of_call("delta", delta=piece.text)
        else:
            yield from self._text(piece.text, logprobs)

    def end(self, status: str) -> Iterator[bytes]:
        """The end of the message or the call that is written, if one is."""
        item, is_text = self._item, self._item is not None and self._item["type"] == "message"
        if item is None:
            return
        if is_text:
            (part,) = item["content"]
            yield self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._of_text("response.content_part.done", part=part)
        else:
            yield self._of_call("done", arguments=item["arguments"])
        item["status"] = status
        yield self._of_item("done", item)
        self.output.append(item)
        self._item = None

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        item = self._item
        if item is None:
            item = message_item(f"msg_{uuid4().hex}", "in_progress", [])
            yield from self._begin(item)
            yield self._of_text("response.content_part.added", part=text_part("", []))
            item["content"] = [text_part("", [])]
        (part,) = item["content"]
        if text or logprobs:
            part["text"] += text
            part["logprobs"] += logprobs
            yield self._of_text("response.output_text.delta", delta=text, logprobs=logprobs)

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield from self.end("completed")
        self._item = item
        yield self._of_item("added", item)

    def failed(self, failure: Failure) -> bytes:
        """The two last events of a response that fails: OpenAI has the error's fields in the event, Open Responses in
        its `error`, at which openai-python raises an APIError.
        """
        code, message = failure.code or failure.type, failure.message
        self._response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        fields = {"code": code, "message": message, "param": failure.param}
        last = self.of_response("response.failed")
        return last + self._event("error", **fields, error={"type": failure.type, **fields})

    def _of_item(self, what: str, item: dict[str, Any]) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self.output), item=item)

    def _of_text(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, **self._index, content_index=0, **fields)

    def _of_call(self, what: str, **fields: Any) -> bytes:
        return self._event(f"response.function_call_arguments.{what}", **self._index, **fields)

    @property
    def _index(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.output)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)
