"""The server in front of replicas lets answers end when it is stopped."""

import asyncio
import threading

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from llamita.errors import UsageError
from llamita.server.listener import bind
from llamita.server.replicas.front import FrontServer
from llamita.server.settings import ServerSettings


def test_a_port_that_another_program_has_taken_by_now() -> None:
    with bind("127.0.0.1", 0) as other, bind("127.0.0.1", other.getsockname()[1]) as listener:  # neither listens yet
        other.listen()
        server = FrontServer(lambda scope, receive, send: receive(), ServerSettings())
        with pytest.raises(UsageError, match="in use by now"):
            server.listen(listener)


@pytest.mark.parametrize("drain_timeout", [30.0, float("inf")])
def test_it_stops_when_its_answers_are_over(drain_timeout: float) -> None:
    has_begun, may_end, is_ready = threading.Event(), threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        await send(start)
        has_begun.set()
        await asyncio.to_thread(may_end.wait, 30)
        await send({"type": "http.response.body", "body": b"ok"})

    listener = bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = FrontServer(app, ServerSettings(drain_timeout=drain_timeout))
    serving = threading.Thread(target=server.listen, args=(listener, is_ready.set))
    serving.start()
    assert is_ready.wait(30)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(httpx.get(address, timeout=30)))
    asking.start()
    assert has_begun.wait(30)
    server.stop()
    may_end.set()
    asking.join(30)
    serving.join(30)
    listener.close()
    assert [one.text for one in answers] == ["ok"]
    assert not serving.is_alive()
    assert not server.force_exit
    server.stop()
    assert server.force_exit
