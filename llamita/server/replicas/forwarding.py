"""Requests that one process receives and another answers: whole requests there, pieces of answers back."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.errors import ClosedError
from llamita.server.boundary import ID_HEADERS
from llamita.server.disconnect import disconnected
from llamita.server.errors import ClientGoneError, refused
from llamita.server.replicas.prefix import prefix_of

# What a request is made of, without what only the process knows that received it.
KEYS = ("type", "http_version", "method", "scheme", "path", "raw_path", "root_path", "query_string", "client", "server")


@dataclass(frozen=True)
class ForwardedRequest:
    """A whole request that can be pickled. prefix: the beginning of its prompt. replica: the only one to ask."""

    scope: dict[str, Any]
    body: bytes
    prefix: str
    replica: int | None = None


Pieces = AsyncGenerator[list[Message], None]
Ask = Callable[[ForwardedRequest], Pieces]


async def answer(app: ASGIApp, request: ForwardedRequest) -> Pieces:
    """What an application sends for a request, as many messages at once as are there; closing it is a disconnect."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    body: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        return await asyncio.get_running_loop().create_future()

    work = asyncio.ensure_future(app(dict(request.scope), receive, sent.put))
    work.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        is_over = False
        while not is_over:
            messages = [await sent.get()]
            while not sent.empty():
                messages.append(sent.get_nowait())
            is_over = messages[-1] is None
            if found := [message for message in messages if message is not None]:
                yield found
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class Forwarder:
    """An application that has each request answered elsewhere. body_timeout: seconds to receive a body."""

    def __init__(self, ask: Ask, *, body_timeout: float) -> None:
        self._ask, self._body_timeout = ask, body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await self._body(receive)
        await _Relay(self._ask(forwarded(scope, body)), send).run(receive)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body. Raises RequestError where it takes too long, and ClientGoneError."""
        parts, is_whole = [], False
        try:
            async with asyncio.timeout(self._body_timeout):
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            message = f"the body did not arrive within {self._body_timeout:g} s"
            raise refused(message, code="request_timeout", status=408) from None
        return b"".join(parts)


def forwarded(scope: Scope, body: bytes) -> ForwardedRequest:
    """A request for another process, under the id that it has in this one."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    headers.append((b"x-request-id", scope.get("llamita.request_id", "").encode()))
    fields = {key: scope[key] for key in KEYS if key in scope}
    return ForwardedRequest({**fields, "headers": headers}, body, prefix_of(body))


class _Relay:
    """Sends an answer on, until it is over or the client leaves."""

    def __init__(self, pieces: Pieces, send: Send) -> None:
        self._pieces, self._send = pieces, send
        self._is_sent = False  # to its last byte; a server reports a disconnect after that too

    async def run(self, receive: Receive) -> None:
        """Send it. Raises ClientGoneError, and what the pieces raise."""
        writer = asyncio.ensure_future(self._write())
        watcher = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not (writer.done() or self._is_sent):
                raise ClientGoneError
            await writer
        finally:
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            await self._pieces.aclose()

    async def _write(self) -> None:
        try:
            async for messages in self._pieces:
                for message in messages:
                    self._is_sent = message["type"] == "http.response.body" and not message.get("more_body", False)
                    await self._send(_without_ids(message))
        except ClosedError:
            if not self._is_sent:  # an answer that is whole lacks nothing where its process stops after it
                raise


def _without_ids(message: Message) -> Message:
    """A message without the headers with the request's id, which are added here again."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [entry for entry in message["headers"] if entry[0] not in ID_HEADERS]}
