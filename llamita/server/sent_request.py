"""What a request asked the model to read, in any dialect, for who writes its answer again without a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from llamita.errors import LlamitaError, UsageError
from llamita.server.anthropic.schemas import CountRequest
from llamita.server.conversation_tokens import Rendering, conversation_tokens
from llamita.server.openai.response_request import ResponseRequest
from llamita.server.openai.schemas import ChatRequest, CompletionRequest
from llamita.tokenizer.protocol import Tokenizer

# What was asked: texts or ids to go on from, or a conversation: messages, tools, and how it is written.
Conversation = tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]], Rendering]
Asked = str | list[int] | Conversation


def _chat(asked: ChatRequest) -> list[Asked]:
    messages = [message.for_template() for message in asked.messages]
    return [(messages, asked.callable_tools, asked.rendering)]


def _messages(asked: CountRequest) -> list[Asked]:
    return [(asked.conversation(), asked.callable_tools, Rendering(continues=asked.continues))]


def _response(asked: ResponseRequest) -> list[Asked]:
    return [(asked.messages(), asked.callable_tools, Rendering())]


def _completion(asked: CompletionRequest) -> list[Asked]:
    return [*asked.prompts]


DIALECTS: Mapping[type[BaseModel], Callable[[Any], list[Asked]]] = {
    ChatRequest: _chat, CountRequest: _messages, ResponseRequest: _response, CompletionRequest: _completion,
}  # fmt: skip


def prompts_of(tokenizer: Tokenizer, request: Any, *, reads_on: bool = False) -> list[list[int]]:
    """The ids of all prompts that a request can mean, each endpoint's reading in turn.

    request: the JSON of a body; or messages as templates read them, or a prompt alone. reads_on: whether the last of
    such messages goes on. Raises UsageError where it asks for nothing.
    """
    body = request if isinstance(request, dict) else {"prompt": request}
    found = [*_read(tokenizer, body)]
    if not found and isinstance(messages := body.get("messages"), list):
        found = [_ids(tokenizer, (messages, body.get("tools") or (), Rendering(continues=reads_on)))]
    if not found:
        raise UsageError("the request has neither messages nor a prompt nor an input: give the JSON that was sent")
    return found


def _read(tokenizer: Tokenizer, body: Mapping[str, Any]) -> Iterator[list[int]]:
    """The prompts as each endpoint would read them that takes such a body."""
    for schema, read in DIALECTS.items():
        with suppress(ValidationError, LlamitaError):
            yield from [_ids(tokenizer, asked) for asked in read(schema.model_validate({"model": "any", **body}))]


def _ids(tokenizer: Tokenizer, asked: Asked) -> list[int]:
    if isinstance(asked, tuple):
        return conversation_tokens(tokenizer, *asked)
    return tokenizer.encode(asked) if isinstance(asked, str) else asked
