"""The paths of OpenAI's API."""

from llamita.server.openai import chat, completions, embeddings, models, response_request, responses, schemas
from llamita.server.openai.errors import ERROR, error_body
from llamita.server.routes import Route, RouteTable

OPENAI = RouteTable(
    "openai",
    (
        Route("/v1/chat/completions", chat.create_chat_completion, schemas.ChatRequest, writes=True),
        Route("/v1/completions", completions.create_completion, schemas.CompletionRequest, writes=True),
        Route("/v1/embeddings", embeddings.create_embeddings, schemas.EmbeddingRequest),
        Route("/v1/responses", responses.create_response, response_request.ResponseRequest, writes=True),
        Route("/v1/responses/input_tokens", responses.count_input_tokens, response_request.ResponseRequest),
        Route("/v1/models", models.list_models),
        Route("/v1/models/{model:path}", models.retrieve_model),
    ),
    error_body,
    ERROR,
    prefix="/v1/",
)
