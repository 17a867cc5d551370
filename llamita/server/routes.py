"""Tables of routes: a part of the server, its paths, which of them need no key, and how it writes errors."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HeadRoute

from llamita.server import docs, health, tokens
from llamita.server.errors import Failure
from llamita.server.openai.errors import ERROR, error_body

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """A path, its handler and the schema of its body; without one it is a GET.

    writes: whether an engine does, whose answer may be a stream. kind: the media type of an answer.
    """

    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    writes: bool = False
    kind: str = "application/json"

    def add_to(self, app: FastAPI, tag: str, error: Mapping[str, Any]) -> None:
        """Let an application have the route, documented by the handler's docstring, its body and an error."""
        extra: dict[str, Any] = {"responses": self._responses(error)}
        if self.body is not None:
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{self.body.__name__}"}}}
            extra["requestBody"] = {"required": True, "content": content}
        if names := re.findall(r"{(\w+)", self.path):
            kind = {"in": "path", "required": True, "schema": {"type": "string"}}
            extra["parameters"] = [{"name": name, **kind} for name in names]
        app.add_api_route(
            self.path,
            self.handler,
            methods=["GET"] if self.body is None else ["POST"],
            response_model=None,
            response_class=Response,  # whose media type is unknown: the responses say it
            tags=[tag],
            openapi_extra=extra,
        )
        if self.body is None:  # as HTTP wants it of all that can be got; a route of its own stands in no schema
            app.router.routes.append(HeadRoute(self.path, self.handler, methods=["HEAD"], include_in_schema=False))

    def _responses(self, error: Mapping[str, Any]) -> dict[str, Any]:
        """What may come back, by its status: the answer, and an error in the dialect of the path."""
        kinds = [self.kind, "text/event-stream"] if self.writes else [self.kind]
        # An engine in trouble is no error of /health and /ready: it is their answer.
        schemas = {"4XX": error, "5XX": {} if self.body is None else error}
        found = {"200": {"description": "The answer", "content": {kind: {} for kind in kinds}}}
        for status, schema in schemas.items():
            found[status] = {"description": "An error", "content": {"application/json": {"schema": schema}}}
        return found


@dataclass(frozen=True)
class RouteTable:
    """The routes of a part of the server.

    prefix: of the paths whose errors are written by error_body, as error_schema says. open_paths: those that need no
    key.
    """

    name: str
    routes: tuple[Route, ...]
    error_body: Callable[[Failure, str], Mapping[str, Any]]
    error_schema: Mapping[str, Any]
    prefix: str = "/"
    open_paths: frozenset[str] = frozenset()

    def add_to(self, app: FastAPI) -> None:
        """Let an application have the routes."""
        for route in self.routes:
            route.add_to(app, self.name, self.error_schema)


OPERATION = RouteTable(
    "operation",
    (
        Route("/health", health.health),
        Route("/ready", health.ready),
        Route("/metrics", health.metrics, kind="text/plain"),
        Route("/openapi.json", docs.openapi),
        Route("/docs", docs.docs, kind="text/html"),
        Route("/tokenize", tokens.tokenize, tokens.TokenizeRequest),
        Route("/detokenize", tokens.detokenize, tokens.DetokenizeRequest),
        Route("/apply-template", tokens.apply_template, tokens.TemplateRequest),
    ),
    error_body,
    ERROR,
    open_paths=frozenset({"/health", "/ready"}),
)
