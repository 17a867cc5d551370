"""/tokenize, /detokenize and /apply-template: text to ids and back, without writing anything."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.body import StrictModel, bounded
from llamita.server.conversation import conversation_ids
from llamita.server.errors import refused
from llamita.server.models import ServedModel
from llamita.server.openai.messages import ChatMessage, ChatTool, tool_data
from llamita.server.openai.template_fields import TemplateFields
from llamita.server.sampling_request import MOST_MESSAGES, TokenId
from llamita.server.sse import dumped
from llamita.server.state import model_of, parsed

PART = 10_000  # tokens of an answer that are written as JSON at once
Name = Annotated[str, Field(max_length=256)] | None
Messages = Annotated[list[ChatMessage], bounded(MOST_MESSAGES, least=1)]
Tools = Annotated[list[ChatTool], bounded(128)] | None


class TokenizeRequest(TemplateFields):
    """A text to tokenize, by vLLM's names or llama.cpp's, or a conversation; without a model, for the first one."""

    model: Name = None
    prompt: str | None = Field(None, max_length=2_000_000, validation_alias=AliasChoices("prompt", "content"))
    messages: Messages | None = None
    tools: Tools = None
    add_special_tokens: bool = Field(True, validation_alias=AliasChoices("add_special_tokens", "add_special"))
    with_pieces: bool = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        return self


class TemplateRequest(TemplateFields):
    """A conversation to write as the model reads it; without a model, for the first one."""

    model: Name = None
    messages: Messages
    tools: Tools = None


class DetokenizeRequest(StrictModel):
    """Ids to turn into text; without a model, of the first one."""

    model: Name = None
    tokens: Annotated[list[TokenId], bounded(1_000_000)]


async def tokenize(request: Request) -> Response:
    """The ids of a text, or of a conversation."""
    asked = await parsed(request, TokenizeRequest)
    model = await model_of(request, asked.model)
    return Response(await asyncio.to_thread(_tokenized, model, asked), media_type="application/json")


async def apply_template(request: Request) -> Response:
    """The text of a conversation as the model reads it, control tokens included."""
    asked = await parsed(request, TemplateRequest)
    model = await model_of(request, asked.model)
    ids = await asyncio.to_thread(_conversation, model, asked)
    text = await asyncio.to_thread(model.texts.tokenizer.decode, ids, skip_special_tokens=False)
    return JSONResponse({"prompt": text})


async def detokenize(request: Request) -> Response:
    """The text of ids, control tokens included."""
    asked = await parsed(request, DetokenizeRequest)
    model = await model_of(request, asked.model)
    text = await asyncio.to_thread(_text, model, asked.tokens)
    return JSONResponse({"prompt": text, "content": text})


def _tokenized(model: ServedModel, asked: TokenizeRequest) -> str:
    ids, texts = _ids(model, asked), model.texts.tables.texts
    tokens = _listed(ids, lambda i: {"id": i, "piece": texts.of(i)} if asked.with_pieces else i)
    spelled = f'"token_strs":{_listed(ids, model.texts.tokenizer.id_to_token)},' if asked.return_token_strs else ""
    rest = dumped({"count": len(ids), "max_model_len": model.texts.context_length})[1:]
    return f'{{"tokens":{tokens},{spelled}{rest}'


def _listed(ids: Sequence[int], entry: Callable[[int], Any]) -> str:
    """A list in JSON, made in parts: to write a million tokens at once would let no other thread run meanwhile."""
    parts = ([entry(i) for i in ids[start : start + PART]] for start in range(0, len(ids), PART))
    return f"[{','.join(dumped(part)[1:-1] for part in parts)}]"


def _text(model: ServedModel, ids: list[int]) -> str:
    size = model.texts.model.config.vocab_size
    if any(i >= size for i in ids):
        raise refused(f"a token id is outside the vocabulary of {size}", param="tokens")
    return model.texts.tokenizer.decode(ids, skip_special_tokens=False)


def _ids(model: ServedModel, asked: TokenizeRequest) -> list[int]:
    if asked.prompt is None:
        return _conversation(model, asked)
    return model.texts.tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens)


def _conversation(model: ServedModel, asked: TokenizeRequest | TemplateRequest) -> list[int]:
    messages = [message.for_template() for message in asked.messages or ()]
    tools = [tool_data(tool.function) for tool in asked.tools or ()]
    return conversation_ids(model, messages, tools, asked.rendering)
