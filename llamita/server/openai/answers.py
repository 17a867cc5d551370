"""What the answers of OpenAI's API have in common: their usage, and how a stream ends that fails."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamita.engine.handle import RequestHandle
from llamita.generation.completion import Completion
from llamita.server.errors import Failure
from llamita.server.openai.errors import error_body
from llamita.server.sse import DONE, event
from llamita.server.usage import tokens_cached, tokens_read, tokens_written
from llamita.tokenizer.protocol import Tokenizer

NOT_OVER: Mapping[str, Any] = {"finish_reason": None}


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
