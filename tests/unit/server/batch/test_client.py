"""Asking an application in this process is the same as asking it over HTTP."""

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llamita.server.batch.client import Answer, post
from llamita.server.disconnect import unless_disconnected


async def echo(request: Request) -> Response:
    headers = {name: request.headers[name] for name in ("content-type", "content-length", "x-request-id", "host")}
    return JSONResponse({"path": request.url.path, "body": await request.json(), **headers}, status_code=201)


async def pieces(_: Request) -> Response:
    return StreamingResponse(iter([b"a", b"b", b"c"]))


async def work(request: Request) -> Response:
    """Takes a while, and gives up where the client leaves."""
    await request.body()
    await unless_disconnected(request.receive, asyncio.sleep(0.02))
    return Response(b"done")


APP = Starlette(routes=[Route(f"/{each.__name__}", each, methods=["POST"]) for each in (echo, pieces, work)])


def test_a_request_arrives_whole() -> None:
    answer = asyncio.run(post(APP, "/echo", b'{"text": "\xc3\xbc"}', "batch_req_1"))
    assert answer.status == 201
    assert json.loads(answer.body) == {
        "path": "/echo",
        "body": {"text": "ü"},
        "content-type": "application/json",
        "content-length": "14",
        "x-request-id": "batch_req_1",
        "host": "localhost",
    }


def test_an_answer_arrives_whole() -> None:
    assert asyncio.run(post(APP, "/pieces", b"", "x")) == Answer(200, b"abc")


def test_the_client_stays_until_it_has_its_answer() -> None:
    assert asyncio.run(post(APP, "/work", b"{}", "x")) == Answer(200, b"done")


def test_a_defect_of_the_application_is_raised() -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(post(broken, "/", b"", "x"))
