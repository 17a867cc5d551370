"""The outermost middleware: gives each request its id, turns errors into answers, logs and counts."""

import re
import traceback
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.server.errors import INVALID_HTTP, ClientGoneError, Failure, failure_of, is_unforeseen, refused
from llamita.server.log import LOGGER, quoted
from llamita.server.metrics import Metrics
from llamita.server.sse import dumped

ErrorBody = Callable[[Failure, str], Mapping[str, Any]]  # of a failure and the request's id
GONE = 499  # nginx's status for a client that left, in the log alone
ID_HEADERS = (b"x-request-id", b"request-id")  # as openai-python and the anthropic SDK look for it
_OWN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Boundary:
    """Middleware around everything. error_bodies: see `error_body_of`."""

    def __init__(self, app: ASGIApp, *, error_bodies: Mapping[str, ErrorBody], metrics: Metrics) -> None:
        self._app, self._metrics, self._error_bodies = app, metrics, error_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, request_id_of(scope))
        scope["llamita.request_id"] = answer.request_id
        began = monotonic()
        try:
            if not scope["path"].startswith("/"):  # "*", or the whole address of a proxy's request
                raise refused("the path must begin with a slash")
            await self._app(scope, receive, answer.send)
        except (ClientDisconnect, ClientGoneError):
            answer.status = GONE
        except Exception as error:
            await self._fail(scope, answer, error)
        finally:
            self._note(scope, answer, monotonic() - began)

    async def _fail(self, scope: Scope, answer: "_Answer", error: Exception) -> None:
        if is_unforeseen(error):
            trace = "".join(traceback.format_exception(error))
            LOGGER.error("request %s failed:\n%s", answer.request_id, trace.rstrip())
        failure = failure_of(error, answer.request_id, path=scope["path"])
        if failure.status in (401, 403, 413, 429, 503):
            self._metrics.count_rejected(failure.code or str(failure.status))
        if answer.status:  # it has begun and cannot be changed: the connection is closed
            raise error
        body = dumped(error_body_of(self._error_bodies, scope["path"])(failure, answer.request_id)).encode()
        headers = _headers(failure, body)
        if isinstance(error, HTTPException):  # which methods a path takes
            headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        await answer.send({"type": "http.response.start", "status": failure.status, "headers": headers})
        await answer.send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _note(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        self._metrics.count_http(route or "other", scope["method"], answer.status)
        fields = {
            "method": quoted(scope["method"], 20),
            "path": quoted(scope["path"]),
            "status": answer.status,
            "ms": round(seconds * 1000),
            "request_id": answer.request_id,
        }
        LOGGER.info("%(method)s %(path)s %(status)d %(ms)d ms %(request_id)s", fields)


class _Answer:
    """Sends an answer under its request's id, and knows its status, 0 before it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id = send, request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(name, self.request_id.encode()) for name in ID_HEADERS]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)


def error_body_of(error_bodies: Mapping[str, ErrorBody], path: str) -> ErrorBody:
    """How errors of a path are written. error_bodies: by the beginning of paths, of which the longest that fits counts.

    What is no path is written as all paths that fit no other are.
    """
    fitting = [beginning for beginning in error_bodies if path.startswith(beginning)]
    return error_bodies[max(fitting, key=len)] if fitting else error_bodies[min(error_bodies, key=len)]


def request_id_of(scope: Scope) -> str:
    """The id that the client gave, where it is plain; else a new one. It names the request in headers and logs only."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _OWN_ID.fullmatch(given) else f"req_{uuid4().hex}"


def _headers(failure: Failure, body: bytes) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if failure.retry_after is not None:
        headers.append((b"retry-after", str(failure.retry_after).encode()))
    if failure.code == INVALID_HTTP:  # what follows on this connection may be a part of the body for others
        headers.append((b"connection", b"close"))
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if failure.status == 408 or failure.status >= 500:  # those that clients repeat unless they are asked not to
        headers.append((b"x-should-retry", b"false" if failure.is_final else b"true"))
    return headers
