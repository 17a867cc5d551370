"""/v1/embeddings: texts as vectors of length 1, the mean of what the model's head would read of their tokens."""

import asyncio
import base64
from collections.abc import Sequence
from functools import partial

import torch
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from llamita.server.disconnect import unless_disconnected
from llamita.server.errors import refused
from llamita.server.models import ServedModel
from llamita.server.openai.schemas import EmbeddingRequest
from llamita.server.sse import dumped
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
    return Response(body, media_type="application/json")


async def _embeddings(model: ServedModel, asked: EmbeddingRequest) -> str:
    """The answer as JSON. Each vector is written by itself: all at once would hold up every other answer."""
    prompts = await asyncio.to_thread(_all_ids, model, asked)
    written: dict[tuple[int, ...], str] = {}
    for ids in map(tuple, prompts):  # one at a time, so that the engine makes its steps between two
        if ids not in written:
            vector = await model.served.call(partial(embedded, model, ids))
            written[ids] = dumped(encoded(vector) if asked.encoding_format == "base64" else vector.tolist())
    items = (
        f'{{"object":"embedding","index":{index},"embedding":{written[tuple(ids)]}}}'
        for index, ids in enumerate(prompts)
    )
    read = sum(len(ids) for ids in prompts)
    rest = {"model": model.name, "usage": {"prompt_tokens": read, "total_tokens": read}}
    return f'{{"object":"list","data":[{",".join(items)}],{dumped(rest)[1:]}'


def _all_ids(model: ServedModel, asked: EmbeddingRequest) -> list[list[int]]:
    ids = [model.prompt_ids(text) if isinstance(text, str) else text for text in asked.inputs]
    return [model.checked_ids(one, "input") for one in ids]


def embedded(model: ServedModel, ids: Sequence[int]) -> Tensor:
    """The vector (D,) of a text, in fp32 and of length 1; for the engine's thread."""
    states = model.engine.last_hidden_state(ids, model.adapter)  # (T, D), without gradients
    return torch.nn.functional.normalize(states.float().mean(0), dim=0).cpu()


def encoded(vector: Tensor) -> str:
    """The numbers as little-endian fp32, in base64."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
