"""The paths of Anthropic's API."""

from llamita.server.anthropic import messages, schemas
from llamita.server.anthropic.errors import ERROR, error_body
from llamita.server.routes import Route, RouteTable

ANTHROPIC = RouteTable(
    "anthropic",
    (
        Route("/v1/messages", messages.create_message, schemas.MessageRequest, writes=True),
        Route("/v1/messages/count_tokens", messages.count_tokens, schemas.CountRequest),
    ),
    error_body,
    ERROR,
    prefix="/v1/messages",
)
