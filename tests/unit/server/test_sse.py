"""Events: one line of ASCII JSON each, whatever they hold."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from llamita.server.errors import ClientGoneError
from llamita.server.sse import PING, EventStream, dumped, event


def test_an_event_is_a_line_of_json_and_a_blank_one() -> None:
    value = {"a": "é\n\r\u2028\u0085", "b": [1.5, None]}
    framed = event(value)
    assert framed.startswith(b"data: {")
    assert framed.endswith(b"}\n\n")
    assert len(framed.splitlines()) == len(framed.decode().splitlines()) == 2
    assert json.loads(framed.removeprefix(b"data: ")) == value
    assert event({}, "error") == b"event: error\ndata: {}\n\n"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_json_has_not_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumped([value])


def served(*, leaves: bool = False, blocks: bool = False) -> tuple[list[Any], list[str]]:
    """What is sent of a stream of two events, and what happened to it."""
    sent: list[Any] = []
    happened: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"1"
            if leaves:
                await asyncio.Event().wait()
            yield b"2"
        finally:
            happened.append("ended")

    async def receive() -> dict[str, str]:
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if blocks:
            await asyncio.Event().wait()
        sent.append(message)
        await asyncio.sleep(0)

    stream = EventStream(events(), close=lambda: happened.append("closed"), send_timeout=0.01)
    asyncio.run(stream({"type": "http"}, receive, send))  # pyright: ignore[reportArgumentType]
    return sent, happened


def test_a_stream_sends_all_and_closes_once() -> None:
    sent, happened = served()
    assert [message.get("body") for message in sent] == [None, b"1", b"2", b""]
    assert sent[0]["status"] == 200
    assert not sent[-1].get("more_body")
    assert happened == ["ended", "closed"]


def test_a_client_that_leaves_ends_the_stream() -> None:
    _, happened = served(leaves=True)
    assert happened[-1] == "closed"


def test_a_client_that_takes_nothing_is_given_up() -> None:
    with pytest.raises(ClientGoneError, match="no data"):
        served(blocks=True)


def test_a_stream_that_waits_sends_comments() -> None:
    sent: list[bytes] = []

    async def run() -> None:
        pinged = asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            yield b"1"
            await pinged.wait()
            yield b"2"

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if sent.count(PING) == 2:
                pinged.set()

        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            return {}

        stream = EventStream(events(), close=lambda: None, send_timeout=60, ping_interval=0.001)
        await stream({"type": "http"}, receive, send)  # pyright: ignore[reportArgumentType]

    asyncio.run(run())
    assert [body for body in sent if body != PING] == [b"", b"1", b"2", b""]
    assert sent.index(PING) == 2
