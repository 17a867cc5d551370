"""Requests that no engine takes are refused by their path alone, before their body is read: overload costs little."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.server.routes import Route
from llamita.server.served_engine import ServedEngine

# A request with a plain path and plain headers; all others are read by h11.
_HEAD = re.compile(rb"POST (/[\w./-]*) HTTP/1\.1\r\n((?:[\w-]+:[\t\x20-\x7e]*\r\n)+)\r\n", re.ASCII)
_LATER = frozenset({b"transfer-encoding", b"expect", b"upgrade"})  # headers that change what comes next


class OverloadCheck:
    """Middleware that refuses requests for texts while all engines are full. routes: those that write, by path.

    With several engines, which one a request is for is in its body: `ServedEngine.admit` refuses for one that is full.
    """

    def __init__(self, app: ASGIApp, *, engines: Sequence[ServedEngine], routes: Mapping[str, Route]) -> None:
        self._app, self._engines, self._routes = app, engines, routes
        self._refusal = Refusal(engines, routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writes = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._routes
        is_refused = writes and all(engine.is_full for engine in self._engines)
        await (self._refusal if is_refused else self._app)(scope, receive, send)


class Arrivals:
    """Requests that have come and are not admitted yet, and the answer to those that will find no room.

    When many come at one instant, all of them are here before the first is admitted; and the event loop looks at its
    sockets after each that is, which takes as long as ten refusals. check: what is asked of a request that is refused,
    and gives it its answer: the application's middlewares, around nothing. paths: those that write.
    """

    def __init__(self, check: ASGIApp, *, engines: Sequence[ServedEngine], paths: frozenset[str]) -> None:
        self._check, self._engines, self._paths = check, engines, paths
        self.count = 0
        self._unread: deque[Callable[[], None]] = deque()

    def add(self, read: Callable[[], None], loop: asyncio.AbstractEventLoop) -> bool:
        """Let a request be read in its turn; returns whether others are before it."""
        self.count += 1
        self._unread.append(read)
        if len(self._unread) == 1:
            loop.call_soon(self._read_next, loop)
        return len(self._unread) > 1

    def _read_next(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._unread[0]()
        finally:
            self._unread.popleft()
            if self._unread:
                loop.call_soon(self._read_next, loop)
            # After the first step of the request's task, and after that of the task which admits it.
            loop.call_soon(loop.call_soon, self._leave)

    def _leave(self) -> None:
        """Count a request no more: it is admitted, or has waited for something."""
        self.count -= 1

    def refusal(self, data: bytes) -> bytes | None:
        """The answer to a whole request that will find no room; None where it may, or has to be read as others are."""
        if sum(engine.capacity - engine.in_flight for engine in self._engines) > self.count:
            return None
        scope = _scope_of(data)
        if scope is None or scope["path"] not in self._paths:
            return None
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        asked = self._check(scope, _nothing, send)
        try:
            asked.send(None)  # type: ignore[attr-defined]  # it waits for nothing
        except StopIteration:
            return _written(sent)
        finally:
            asked.close()  # type: ignore[attr-defined]
        return None


class Refusal:
    """The application as it is for a request that is refused: it raises that all engines are full."""

    def __init__(self, engines: Sequence[ServedEngine], routes: Mapping[str, Route]) -> None:
        self._engines, self._routes = engines, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._routes[scope["path"]]  # as the router would, for the metrics
        raise self._engines[0].overloaded()


def _scope_of(data: bytes) -> Scope | None:
    """What ASGI says of a whole plain request, its body left out; None for any other."""
    head = _HEAD.match(data)
    if head is None:
        return None
    lines = (line.partition(b":") for line in head[2].splitlines())
    headers = [(name.lower(), value.strip()) for name, _, value in lines]
    lengths = [value for name, value in headers if name == b"content-length"]
    is_last = any(name == b"connection" and value.lower() != b"keep-alive" for name, value in headers)
    if lengths != [b"%d" % (len(data) - head.end())] or is_last or any(name in _LATER for name, _ in headers):
        return None
    return {"type": "http", "method": "POST", "path": head[1].decode(), "headers": headers}


async def _nothing() -> Message:
    raise AssertionError("a request that is refused is not read")


def _written(sent: Sequence[Message]) -> bytes:
    """The messages of an answer as HTTP."""
    start, *rest = sent
    status = HTTPStatus(start["status"])
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), b"date: " + formatdate(usegmt=True).encode()]
    lines += [name + b": " + value for name, value in start["headers"]]
    return b"\r\n".join([*lines, b"", b"".join(message["body"] for message in rest)])
