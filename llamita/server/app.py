"""The server's application: routes, and the middlewares around them."""

from collections.abc import Mapping, Sequence
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita import __version__
from llamita.server.access import HostCheck, KeyCheck
from llamita.server.anthropic.routes import ANTHROPIC
from llamita.server.body import BodyLimit
from llamita.server.boundary import Boundary, ErrorBody
from llamita.server.docs import describe
from llamita.server.metrics import Metrics
from llamita.server.models import Models, ServedModel
from llamita.server.openai.routes import OPENAI
from llamita.server.overload import Arrivals, OverloadCheck, Refusal
from llamita.server.page.page import PATHS, page_routes
from llamita.server.routes import OPERATION, RouteTable
from llamita.server.routes import Route as ServedRoute
from llamita.server.served_engine import ServedEngine
from llamita.server.settings import ServerSettings
from llamita.server.state import ServerState

TABLES: tuple[RouteTable, ...] = (OPERATION, OPENAI, ANTHROPIC)  # what the server has: one table for each part
ERROR_BODIES: Mapping[str, ErrorBody] = {table.prefix: table.error_body for table in TABLES}
WRITING: Mapping[str, ServedRoute] = {route.path: route for table in TABLES for route in table.routes if route.writes}


def create_app(models: Sequence[ServedModel], settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application that serves these models. Raises UsageError where two of them have one name."""
    state = ServerState(Models(models), ServerSettings() if settings is None else settings)
    for engine in state.models.engines:
        engine.read_facts()
    app = FastAPI(
        title="llamita",
        version=__version__,
        # Whatever OpenTelemetry's environment variables say, this server opens no connections.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        openapi_url=None,  # ours, as FastAPI's pages load scripts from elsewhere
        exception_handlers={HTTPException: _raise_on},
        middleware=[*middleware(state.settings, state.metrics), _overload_check(state.models.engines)],
    )
    app.router.redirect_slashes = False
    app.state.server = state
    app.state.bodies = [route.body for table in TABLES for route in table.routes if route.body is not None]
    app.openapi = partial(describe, app)
    for table in TABLES:
        table.add_to(app)
    app.router.routes.extend(page_routes())
    app.state.arrivals = _arrivals(state)
    return app


def paths_of(app: FastAPI) -> set[str]:
    """The paths that an application has."""
    return {route.path for route in app.routes if isinstance(route, Route)}


def middleware(settings: ServerSettings, metrics: Metrics) -> list[Middleware]:
    """What surrounds the routes, the outermost first: errors, host names, keys and the size of bodies."""
    open_paths = {path for table in TABLES for path in table.open_paths} | PATHS
    return [
        Middleware(Boundary, error_bodies=ERROR_BODIES, metrics=metrics),
        Middleware(HostCheck, settings=settings),
        Middleware(KeyCheck, settings=settings, open_paths=open_paths),
        Middleware(BodyLimit, most=settings.max_body_bytes),
    ]


def _overload_check(engines: Sequence[ServedEngine]) -> Middleware:
    """The innermost: what has no key, or asks by another name, learns nothing of the load."""
    return Middleware(OverloadCheck, engines=engines, routes=WRITING)


def _arrivals(state: ServerState) -> Arrivals:
    """What connections refuse requests by: the same middlewares around a refusal."""
    engines, check = state.models.engines, Refusal(state.models.engines, WRITING)
    for one in reversed(middleware(state.settings, state.metrics)):
        check = one.cls(check, *one.args, **one.kwargs)
    return Arrivals(check, engines=engines, paths=frozenset(WRITING))


async def _raise_on(_: Request, error: Exception) -> Response:
    """Leave errors of the router to the boundary too, which knows the dialect."""
    raise error
