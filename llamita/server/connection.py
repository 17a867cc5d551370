"""Connections of HTTP/1.1: not too many, none that takes for ever to say what it wants, refused early."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamita.server.boundary import ErrorBody, error_body_of
from llamita.server.errors import INVALID_HTTP, Failure
from llamita.server.overload import Arrivals
from llamita.server.settings import ServerSettings


class BoundedConnection(H11Protocol):
    """A connection that is refused where there are too many, and closed where a request's headers do not come.

    max_connections: of the server, this one included. header_timeout: seconds from the beginning of the connection, or
    of a later request, to the end of the headers. error_bodies: how errors are written, by path. arrivals: refuses
    those that find no room; None for no such.
    """

    def __init__(
        self,
        *args: Any,
        max_connections: int,
        header_timeout: float,
        error_bodies: Mapping[str, ErrorBody],
        arrivals: Arrivals | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*args, **named)
        self._max_connections, self._header_timeout, self._arrivals = max_connections, header_timeout, arrivals
        self._error_bodies = error_bodies
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.write(self._refusal())
            transport.close()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read what has come; a request for a text after all the others that have come meanwhile."""
        arrivals = self._arrivals
        if arrivals is None or not data.startswith(b"POST ") or not self._is_between_requests:
            self._read(data)
        elif (answer := arrivals.refusal(data)) is None:
            if arrivals.add(partial(self._read_arrived, data), self.loop):
                self.flow.pause_reading()  # what comes next is read after it
        else:
            self._stop_waiting()
            self.transport.write(answer)
            self.on_response_complete()

    @property
    def _is_between_requests(self) -> bool:
        """Whether the last request is answered, and of the next one nothing has come."""
        return self.conn.our_state is self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _read_arrived(self, data: bytes) -> None:
        if not self.transport.is_closing():  # by the timer of its headers, or at the server's end
            self.flow.resume_reading()
            self._read(data)

    def _read(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # it has begun a request, and not said which
            self._wait_for_head()
        else:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as all that is wrong is answered; where an answer has begun, hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._last(Failure(400, "this is no HTTP/1.1 request", code=INVALID_HTTP)))
        self.transport.close()

    def _refusal(self) -> bytes:
        message = f"there are {self._max_connections} connections already, which is the limit: try again later"
        failure = Failure(503, message, "server_error", "too_many_connections")
        return self._last(failure, "retry-after: 1", "x-should-retry: true")

    def _last(self, failure: Failure, *headers: str) -> bytes:
        """The last answer of a connection."""
        is_known = self.conn.our_state is h11.SEND_RESPONSE  # the request, whose body is what is wrong
        write = error_body_of(self._error_bodies, self.scope["path"] if is_known else "")
        body, phrase = json.dumps(write(failure, "")).encode(), HTTPStatus(failure.status).phrase
        lines = [f"HTTP/1.1 {failure.status} {phrase}", "content-type: application/json", "connection: close"]
        return "\r\n".join([*lines, *headers, f"content-length: {len(body)}", "", ""]).encode() + body

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._header_timeout, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol_of(
    settings: ServerSettings, error_bodies: Mapping[str, ErrorBody], arrivals: Arrivals | None = None
) -> type[asyncio.Protocol]:
    """What uvicorn makes connections of."""
    bounds = {
        "max_connections": settings.max_connections, "header_timeout": settings.header_timeout,
        "error_bodies": error_bodies, "arrivals": arrivals,
    }  # fmt: skip
    return cast("type[asyncio.Protocol]", partial(BoundedConnection, **bounds))
