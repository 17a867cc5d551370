"""What the answers of OpenAI's API have in common: their usage, and how a stream ends that fails."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from llamita.engine.handle import RequestHandle
from llamita.generation.completion import Completion
from llamita.server.errors import Failure
from llamita.server.models import ServedModel
from llamita.server.openai.errors import error_body
from llamita.server.sampling_request import StreamOptions
from llamita.server.sse import DONE, event
from llamita.server.usage import tokens_cached, tokens_read, tokens_written
from llamita.tokenizer.protocol import Tokenizer

NOT_OVER: Mapping[str, Any] = {"finish_reason": None}


class Chunks:
    """The frame of an answer, whole or in chunks: id, time and model, and `usage` in a stream that asks for it.

    prefix: of the id. kind: OpenAI's name of the object.
    """

    def __init__(self, prefix: str, kind: str, model: ServedModel, options: StreamOptions | None) -> None:
        self._head = {
            "id": f"{prefix}-{uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.system_fingerprint,
        }
        self._has_usage = options is not None and bool(options.include_usage)

    def whole(
        self, choices: list[dict[str, Any]], usage: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head, "choices": choices, "usage": usage, **extra}

    def one(self, choice: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> bytes:
        """A chunk with a piece of one choice."""
        usage = {"usage": None} if self._has_usage else {}
        return event({**self._head, "choices": [choice], **usage, **(extra or {})})

    def end(self, handles: Sequence[RequestHandle], n: int) -> bytes:
        """The end of a stream, after the usage if that is asked for."""
        usage = event({**self._head, "choices": [], "usage": usage_of(handles, n)}) if self._has_usage else b""
        return usage + DONE


def error_events(failure: Failure) -> bytes:
    """An event with the error and the end of the stream, as openai-python reads it."""
    return event(error_body(failure)) + DONE


def ending_of(completion: Completion, tokenizer: Tokenizer, *, is_called: bool = False) -> dict[str, Any]:
    """Why a choice is over, and by what: vLLM's `stop_reason` is the stop string or token, None for an end token."""
    by = completion.stop_reason
    return {
        "finish_reason": "tool_calls" if is_called else completion.finish_reason,
        "stop_reason": None if by in tokenizer.eos_token_ids else by,
    }


def usage_of(handles: Sequence[RequestHandle], n: int) -> dict[str, Any]:
    """`usage` of an answer whose texts are over, n of each prompt."""
    read, written = tokens_read(handles, n), tokens_written(handles)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": tokens_cached(handles, n), "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
