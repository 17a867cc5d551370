"""/tokenize and /detokenize: text to ids and back, without writing anything."""

import asyncio
from typing import Annotated

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.body import StrictModel
from llamita.server.errors import refused
from llamita.server.state import model_of, parsed


class TokenizeRequest(StrictModel):
    """A text to tokenize, by vLLM's names or llama.cpp's; without a model, for the first one."""

    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: Annotated[str, Field(max_length=2_000_000, validation_alias=AliasChoices("prompt", "content"))]
    add_special_tokens: bool = Field(True, validation_alias=AliasChoices("add_special_tokens", "add_special"))
    with_pieces: bool = False


class DetokenizeRequest(StrictModel):
    """Ids to turn into text; without a model, of the first one."""

    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=1_000_000)]


async def tokenize(request: Request) -> Response:
    """The ids of a text."""
    asked = await parsed(request, TokenizeRequest)
    model = await model_of(request, asked.model)
    tokenizer = model.texts.tokenizer
    ids = await asyncio.to_thread(tokenizer.encode, asked.prompt, add_special_tokens=asked.add_special_tokens)
    texts = model.texts.tables.texts
    tokens = [{"id": i, "piece": texts.of(i)} for i in ids] if asked.with_pieces else ids
    return JSONResponse({"tokens": tokens, "count": len(ids), "max_model_len": model.texts.context_length})


async def detokenize(request: Request) -> Response:
    """The text of ids, control tokens included."""
    asked = await parsed(request, DetokenizeRequest)
    model = await model_of(request, asked.model)
    size = model.texts.model.config.vocab_size
    if any(i >= size for i in asked.tokens):
        raise refused(f"a token id is outside the vocabulary of {size}", param="tokens")
    text = await asyncio.to_thread(model.texts.tokenizer.decode, asked.tokens, skip_special_tokens=False)
    return JSONResponse({"prompt": text, "content": text})
