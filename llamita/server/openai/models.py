"""/v1/models: which models there are, in the words of both APIs, which have this path in common."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.models import ServedModel
from llamita.server.state import state_of


async def list_models(request: Request) -> Response:
    """All models."""
    models = [model_data(model) for model in state_of(request).models]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"], "has_more": False}
    return JSONResponse({"object": "list", "data": models, **ends})


async def retrieve_model(request: Request) -> Response:
    """One model by its name, which may have slashes."""
    return JSONResponse(model_data(state_of(request).models.find(request.path_params["model"])))


def model_data(model: ServedModel) -> dict[str, Any]:
    """A model in OpenAI's and Anthropic's words, and its context and what an adapter adapts, as vLLM calls them."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llamita",
        "type": "model",
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_model_len": model.served.context_length,
        "parent": None if model.adapter is None else model.served.name,
    }
