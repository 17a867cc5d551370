"""A request that is forwarded is answered as it would be here, piece by piece, and its end reaches both sides."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from llamita.errors import ClosedError
from llamita.server.errors import ClientGoneError, RequestError
from llamita.server.replicas.forwarding import ForwardedRequest, Forwarder, Pieces, answer, forwarded

EVENTS: list[str] = []


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "body": body.decode(),
            "path": request.url.path,
            "query": request.url.query,
            "id": request.headers["x-request-id"],
        },
        status_code=201,
        headers={"x-request-id": "theirs", "x-other": "y"},
    )


async def count(_: Request) -> Response:
    async def numbers() -> AsyncIterator[bytes]:
        try:
            for number in range(5):
                yield str(number).encode()
                await asyncio.sleep(0)
        finally:
            EVENTS.append("closed")

    return StreamingResponse(numbers())


async def never(_: Request) -> Response:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        EVENTS.append("cancelled")
        raise
    return Response()


APP = Starlette(
    routes=[
        Route("/echo", echo, methods=["GET", "POST"]),
        Route("/count", count),
        Route("/never", never, methods=["POST"]),
    ]
)
SCOPE: Scope = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/never",
    "raw_path": b"/never",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"x-request-id", b"the client's")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
    "llamita.request_id": "req_1",
    "state": {"a lock": object()},
}


@pytest.fixture(autouse=True)
def no_events() -> None:
    EVENTS.clear()


async def elsewhere(app: ASGIApp, request: ForwardedRequest) -> Pieces:
    """As if it were another process."""
    async for messages in answer(app, pickle.loads(pickle.dumps(request))):
        yield pickle.loads(pickle.dumps(messages))


FORWARDER = Forwarder(partial(elsewhere, APP), body_timeout=30.0)


def asked(method: str, path: str, *, forwarder: Forwarder = FORWARDER, **given: object) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(forwarder)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **given)  # pyright: ignore[reportArgumentType]

    return asyncio.run(ask())


def test_a_request_and_its_answer_arrive_whole() -> None:
    found = asked("POST", "/echo?a=b", content=b"body", headers={"x-request-id": "given"})
    assert found.status_code == 201
    assert found.json() == {"body": "body", "path": "/echo", "query": "a=b", "id": ""}
    assert "x-request-id" not in found.headers  # the boundary of this process adds it
    assert found.headers["x-other"] == "y"
    assert asked("GET", "/none").status_code == 404


def test_an_answer_comes_in_pieces() -> None:
    async def pieces() -> list[bytes]:
        request = forwarded({**SCOPE, "method": "GET", "path": "/count"}, b"")
        return [message.get("body", b"") async for messages in answer(APP, request) for message in messages]

    assert b"".join(asyncio.run(pieces())) == b"01234"
    assert asked("GET", "/count").text == "01234"
    assert EVENTS == ["closed"] * 2


def test_a_request_is_forwarded_under_its_id_and_without_what_is_of_this_process() -> None:
    request = pickle.loads(pickle.dumps(forwarded(SCOPE, b'{"prompt": "a"}')))
    assert dict(request.scope["headers"]) == {b"host": b"localhost", b"x-request-id": b"req_1"}
    assert "state" not in request.scope
    assert (request.body, request.prefix) == (b'{"prompt": "a"}', '["a"]')


def test_a_client_that_leaves_ends_the_work() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return messages.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError

    with pytest.raises(ClientGoneError):
        asyncio.run(_call(FORWARDER, receive, send))
    assert EVENTS == ["cancelled"]


def test_a_disconnect_that_follows_a_whole_answer_is_none() -> None:
    is_over = asyncio.Event()
    body: list[Message] = [{"type": "http.request", "body": b""}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await is_over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            is_over.set()

    async def slow(request: ForwardedRequest) -> Pieces:
        async for messages in answer(APP, request):
            yield messages
        await asyncio.sleep(0.02)
        EVENTS.append("ended")

    asyncio.run(_call(Forwarder(slow, body_timeout=1.0), receive, send, path="/echo"))
    assert EVENTS == ["ended"]


@pytest.mark.parametrize("pieces", [1, 9])
def test_a_process_that_stops_fails_the_answers_that_are_not_whole(pieces: int) -> None:
    async def stopping(request: ForwardedRequest) -> Pieces:
        left = pieces
        async for messages in answer(APP, request):
            for message in messages:
                if left:
                    left -= 1
                    yield [message]
        raise ClosedError

    forwarder = Forwarder(stopping, body_timeout=1.0)
    if pieces == 1:
        with pytest.raises(ClosedError):
            asked("POST", "/echo", forwarder=forwarder)
    else:
        assert asked("POST", "/echo", forwarder=forwarder).status_code == 201


def test_a_body_that_does_not_come() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    with pytest.raises(RequestError, match="did not arrive") as error:
        asyncio.run(_call(Forwarder(partial(answer, APP), body_timeout=0.01), receive, send))
    assert error.value.failure.status == 408


async def _call(app: ASGIApp, receive: object, send: object, path: str = "/never") -> None:
    await app({**SCOPE, "path": path}, receive, send)  # pyright: ignore[reportArgumentType]
