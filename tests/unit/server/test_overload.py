"""A request that no engine takes is refused before its body is read."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from llamita.errors import OverloadedError
from llamita.server.app import TABLES
from llamita.server.overload import Arrivals, OverloadCheck

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
def test_r22_paths_that_write_are_closed_while_all_engines_are_full(path: str) -> None:
    assert not passed("POST", path, True)
    assert not passed("POST", path, True, True)
    assert passed("POST", path, True, False)
    assert passed("GET", path, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens", "/tokenize", "/v1/models"])
def test_r22_other_paths_stay_open(path: str) -> None:
    assert passed("POST", path, True)


def test_requests_are_read_one_after_the_other_with_a_look_at_the_sockets_between() -> None:
    """Also where one of them raises; each is counted until it is admitted."""
    seen: list[object] = []

    def raises() -> None:
        seen.append("b")
        raise ValueError

    async def come() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        arrivals = Arrivals(never, engines=[], paths=frozenset())
        waits = [arrivals.add(read, loop) for read in (partial(seen.append, "a"), raises, partial(seen.append, "c"))]
        assert (waits, arrivals.count) == ([False, True, True], 3)
        for number in range(6):
            seen.append(number)
            await asyncio.sleep(0)
        assert arrivals.count == 0

    asyncio.run(come())
    assert seen == [0, "a", 1, "b", 2, "c", 3, 4, 5]


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nothing is refused")
