"""Server-sent events: their framing, and a response that streams them until the client leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llamita.server.disconnect import disconnected
from llamita.server.errors import ClientGoneError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def dumped(value: Any) -> str:
    """A value as JSON on one line, in ASCII: some clients take U+2028 for the end of a line. NaN is refused."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """An event of JSON, with a name where the dialect gives it one."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {dumped(data)}\n\n".encode()


class EventStream(Response):
    """A response that sends events as they come; `close` is called once, however it ends.

    send_timeout: seconds that the client may take for one piece; a slower one is cut off. ping_interval: seconds
    without an event after which a comment is sent, so that no proxy takes a waiting stream for a dead one.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], object],
        send_timeout: float,
        ping_interval: float = 15.0,
    ) -> None:
        super().__init__()
        self._events, self._close = events, close
        self._send_timeout, self._ping_interval = send_timeout, ping_interval
        self._began: float | None = None  # when the piece that is being sent was begun, by the loop's clock
        self._sent: float | None = None  # when the last one was sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer, watcher = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(self._watch(send))
        tasks = (writer, asyncio.ensure_future(disconnected(receive)), watcher)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()
            self._close()
        if not writer.cancelled():
            writer.result()
        elif not watcher.cancelled() and watcher.exception() is None:
            raise ClientGoneError(f"it took no data for {self._send_timeout:g} s")

    async def _write(self, send: Send) -> None:
        await self._noted(send({"type": "http.response.start", "status": 200, "headers": HEADERS}))
        async for piece in self._events:
            await self._noted(send({"type": "http.response.body", "body": piece, "more_body": True}))
        await self._noted(send({"type": "http.response.body", "body": b""}))

    async def _noted(self, sending: Awaitable[None]) -> None:
        clock = asyncio.get_running_loop().time
        self._began = clock()
        await sending
        self._sent, self._began = clock(), None

    async def _watch(self, send: Send) -> None:
        """Send a comment whenever nothing else was sent for a while; return where a piece takes too long.

        One clock for all pieces: to set one for each would take longer than to send it.
        """
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            due = now + self._ping_interval
            if self._began is not None:
                due = self._began + self._send_timeout
                if now >= due:
                    return
            elif self._sent is not None:
                due = self._sent + self._ping_interval
                if now >= due:
                    await send({"type": "http.response.body", "body": PING, "more_body": True})
                    self._sent = clock()
                    continue
            await asyncio.sleep(min(due - now, self._send_timeout))  # by when a piece that is begun now may be late
