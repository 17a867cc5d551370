"""/v1/models: which models there are."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.models import ServedModel
from llamita.server.state import state_of


async def list_models(request: Request) -> Response:
    """All models."""
    models = [model_data(model) for model in state_of(request).models]
    return JSONResponse({"object": "list", "data": models})


async def retrieve_model(request: Request) -> Response:
    """One model by its name, which may have slashes."""
    return JSONResponse(model_data(state_of(request).models.find(request.path_params["model"])))


def model_data(model: ServedModel) -> dict[str, Any]:
    """A model in OpenAI's words, and its context and the model that an adapter adapts as vLLM calls them."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llamita",
        "max_model_len": model.served.context_length,
        "parent": None if model.adapter is None else model.served.name,
    }
