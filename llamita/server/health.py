"""/health, /ready and /metrics: for those who watch over the server."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.state import ServerState, state_of

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def health(request: Request) -> Response:
    """200 while every engine lives and moves; 503 once one is dead, or busy and without a step for too long."""
    return _answer(trouble(state_of(request)))


async def ready(request: Request) -> Response:
    """200 while new requests would be taken: healthy, not about to stop, not full."""
    state = state_of(request)
    found = trouble(state)
    if found is None and state.is_draining:
        found = "the server is shutting down"
    if found is None and (full := next((one.name for one in state.models.engines if one.is_full), None)):
        found = f"{full} has as many requests as it takes"
    return _answer(found)


async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(state_of(request).metrics.text(), media_type=METRICS_TYPE)


def trouble(state: ServerState) -> str | None:
    """What is wrong with an engine, None where all is well."""
    for engine in state.models.engines:
        if engine.has_failed:
            why = "" if engine.failure is None else f": {engine.failure}"
            return f"the engine of {engine.name} has stopped{why}"
        if engine.stats.step_age > state.settings.stall_timeout:
            return f"the engine of {engine.name} has made no step for {state.settings.stall_timeout:g} s"
    return None


def _answer(found: str | None) -> Response:
    if found is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "reason": found}, status_code=503)
