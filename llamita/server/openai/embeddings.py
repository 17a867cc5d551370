"""/v1/embeddings: texts as vectors of length 1, the mean of what the model's head would read of their tokens."""

import asyncio
import base64
from functools import partial
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from llamita.server.disconnect import unless_disconnected
from llamita.server.errors import refused
from llamita.server.models import ServedModel
from llamita.server.openai.schemas import EmbeddingRequest
from llamita.server.state import model_of, parsed


async def create_embeddings(request: Request) -> Response:
    """Embed texts."""
    asked = await parsed(request, EmbeddingRequest)
    model = await model_of(request, asked.model)
    size = model.texts.model.config.hidden_size
    if asked.dimensions not in (None, size):
        raise refused(f"dimensions is {asked.dimensions}, the vectors have {size}: leave it out", param="dimensions")
    model.served.admit(1)
    try:
        body = await unless_disconnected(request.receive, _embeddings(model, asked))
    finally:
        model.served.release(1)
    return JSONResponse(body)


async def _embeddings(model: ServedModel, asked: EmbeddingRequest) -> dict[str, Any]:
    prompts = await asyncio.to_thread(_all_ids, model, asked)
    data = []
    for index, ids in enumerate(prompts):  # one at a time, so that the engine makes its steps between two
        vector = await model.served.call(partial(embedded, model, ids))
        written = vector.tolist() if asked.encoding_format != "base64" else encoded(vector)
        data.append({"object": "embedding", "index": index, "embedding": written})
    read = sum(len(ids) for ids in prompts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}


def _all_ids(model: ServedModel, asked: EmbeddingRequest) -> list[list[int]]:
    ids = [model.prompt_ids(text) if isinstance(text, str) else text for text in asked.inputs]
    return [model.checked_ids(one, "input") for one in ids]


def embedded(model: ServedModel, ids: list[int]) -> Tensor:
    """The vector (D,) of a text, in fp32 and of length 1; for the engine's thread."""
    states = model.engine.last_hidden_state(ids, model.adapter)  # (T, D), without gradients
    return torch.nn.functional.normalize(states.float().mean(0), dim=0).cpu()


def encoded(vector: Tensor) -> str:
    """The numbers as little-endian fp32, in base64."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
