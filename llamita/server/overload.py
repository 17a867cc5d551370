"""Requests that no engine takes are refused by their path alone, before their body is read: overload costs little."""

from collections.abc import Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from llamita.server.routes import Route
from llamita.server.served_engine import ServedEngine


class OverloadCheck:
    """Middleware that refuses requests for texts while all engines are full. routes: those that write, by path.

    With several engines, which one a request is for is in its body: `ServedEngine.admit` refuses for one that is full.
    """

    def __init__(self, app: ASGIApp, *, engines: Sequence[ServedEngine], routes: Mapping[str, Route]) -> None:
        self._app, self._engines, self._routes = app, engines, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writes = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._routes
        if writes and all(engine.is_full for engine in self._engines):
            scope["route"] = self._routes[scope["path"]]  # as the router would, for the metrics
            raise self._engines[0].overloaded()
        await self._app(scope, receive, send)
