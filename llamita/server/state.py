"""What all requests of a server share, and how a handler gets at it."""

from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from llamita.engine.terms import Terms
from llamita.server.body import parsed_body
from llamita.server.metrics import Metrics
from llamita.server.models import Models, ServedModel
from llamita.server.sampling_request import SamplingRequest
from llamita.server.settings import ServerSettings

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(eq=False)
class ServerState:
    """The models, the settings and the metrics of a server."""

    models: Models
    settings: ServerSettings
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models.engines)

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more requests, as it is about to stop."""
        return any(engine.is_draining for engine in self.models.engines)

    @property
    def in_flight(self) -> int:
        """Texts that are prepared, wait or are written."""
        return sum(engine.in_flight for engine in self.models.engines)

    def drain(self) -> None:
        """Take no more requests."""
        for engine in self.models.engines:
            engine.is_draining = True


def state_of(request: Request) -> ServerState:
    """The server that a request came to."""
    return request.app.state.server


async def parsed(request: Request, schema: type[Schema]) -> Schema:
    """The body of a request as its schema wants it. Raises ValidationError, RequestError and ClientDisconnect."""
    return await parsed_body(request, schema, timeout=state_of(request).settings.body_timeout)


def terms_of(request: Request, asked: SamplingRequest) -> Terms:
    """How the texts of a request are written: those of one key share cached prompts with no other's."""
    key, settings = request.scope.get("llamita.key") or "", state_of(request).settings
    cache_salt = asked.cache_salt or ""
    return Terms(
        cache_salt=f"{key}:{cache_salt}" if key or cache_salt else "",
        priority=asked.priority or 0,
        timeout=settings.request_timeout,
        queue_timeout=settings.queue_timeout,
    )


async def model_of(request: Request, name: str | None) -> ServedModel:
    """The model that a request names, or the first one, loaded. Raises RequestError, and ClosedError without memory."""
    models = state_of(request).models
    model = next(iter(models)) if name is None else models.find(name)
    await model.served.ready()
    return model
