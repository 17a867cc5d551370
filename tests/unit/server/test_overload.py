"""A request that no engine takes is refused before its body is read."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from llamita.errors import OverloadedError
from llamita.server.app import TABLES
from llamita.server.overload import OverloadCheck

ROUTES = {route.path: route for table in TABLES for route in table.routes if route.writes}


class Full(SimpleNamespace):
    def overloaded(self) -> OverloadedError:
        return OverloadedError("full")


def passed(method: str, path: str, *full: bool) -> bool:
    """Whether a request reaches the application."""
    reached: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    engines: Any = [Full(is_full=one) for one in full]
    check = OverloadCheck(app, engines=engines, routes=ROUTES)
    scope: Scope = {"type": "http", "method": method, "path": path}
    try:
        asyncio.run(check(scope, receive, send))
    except OverloadedError:
        assert scope["route"].path == path
        return False
    return bool(reached)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_paths_that_write_are_closed_while_all_engines_are_full(path: str) -> None:
    assert not passed("POST", path, True)
    assert not passed("POST", path, True, True)
    assert passed("POST", path, True, False)
    assert passed("GET", path, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens", "/tokenize", "/v1/models"])
def test_other_paths_stay_open(path: str) -> None:
    assert passed("POST", path, True)
