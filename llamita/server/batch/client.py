"""Asking an ASGI application in this process, as if it were reached over HTTP."""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


async def post(app: ASGIApp, path: str, body: bytes, request_id: str) -> Answer:
    """The answer to a POST of JSON, under this request id; cancelling it is a client that disconnects."""
    status, pieces, is_sent = 0, [], False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:  # a client that stays until it has its answer
            await asyncio.get_running_loop().create_future()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        pieces.append(message.get("body", b""))

    await app(_scope(path, body, request_id), receive, send)
    return Answer(status, b"".join(pieces))


def _scope(path: str, body: bytes, request_id: str) -> Scope:
    """What a server says of such a request."""
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in {**headers, "x-request-id": request_id}.items()],
        "client": None,
        "server": None,
    }
