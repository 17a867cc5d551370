"""R28 to R30: a signal lets answers end, in time; the second does not wait; and the port is free at once."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psutil
import pytest

from llamita.engine.engine import Engine
from llamita.llm import LLM
from llamita.server import run
from tests.server.serving import PATIENCE, Running, chat, connected, raw_request, serving, wait_until
from tests.zygote import Forked, Zygote

ENDLESS = {"temperature": 1, "logit_bias": {"2041": -100, "2045": -100, "2046": -100}}  # no end token


def stop(server: Running) -> None:
    server.loop.call_soon_threadsafe(server.server.stop)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_r28_answers_end_and_new_requests_are_refused(cria: LLM) -> None:
    with serving(cria) as server, ExitStack() as stack:
        connections = [stack.enter_context(connected(server.port)) for _ in range(5)]
        for connection in connections:
            body = chat(**ENDLESS, max_tokens=150, stream=True)
            connection.sendall(raw_request("/v1/chat/completions", body, connection="close"))
        wait_until(lambda: server.in_flight == 5, "the requests")
        stop(server)
        wait_until(lambda: server.server.state.is_draining, "the drain")
        late = server.post("/v1/chat/completions", chat())
        assert (late.status_code, late.headers["x-should-retry"]) == (503, "true")
        assert "retry-after" in late.headers
        assert server.get("/ready").status_code == 503
        assert server.get("/health").status_code == 200
        for connection in connections:
            ended = read_all(connection)
            assert b'"finish_reason":"length"' in ended
            assert b"data: [DONE]" in ended
    assert server.server.exit_code == 0


# How the stream of a path ends that is not waited for.
CUT: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/chat/completions": (chat(max_tokens=450), b'data: {"error":'),
    "/v1/completions": ({"model": "cria", "prompt": "Hello", "max_tokens": 450}, b'data: {"error":'),
    "/v1/responses": ({"model": "cria", "input": "Hello", "max_output_tokens": 450}, b"event: error\n"),
    "/v1/messages": (chat(max_tokens=450), b"event: error\n"),
}


def test_r28_answers_that_take_too_long_end_with_an_error(cria: LLM) -> None:
    with serving(cria, drain_timeout=0.0) as server, ExitStack() as stack:
        connections = [stack.enter_context(connected(server.port)) for _ in CUT]
        for connection, (path, (body, _)) in zip(connections, CUT.items(), strict=True):
            connection.sendall(raw_request(path, {**body, **ENDLESS, "stream": True}, connection="close"))
        wait_until(lambda: server.model.engine.stats.running == len(CUT), "the requests")
        stop(server)
        for connection, (path, (_, error)) in zip(connections, CUT.items(), strict=True):
            ended = read_all(connection)
            assert ended.count(error) == 1, path
            assert (b"data: [DONE]" in ended) == error.startswith(b"data: ")
        wait_until(lambda: server.metric("requests_aborted_total", reason="shutdown") == len(CUT), "their count")


@contextmanager
def process(zygote: Zygote, port: str) -> Iterator[tuple[Forked, str]]:
    """`llamita serve` as a process of its own, and its address."""
    with closing(zygote.open(["serve", "-q", "--port", port])) as started:
        yield started, started.stdout.readline().strip()


@pytest.mark.early
def test_r28_the_process_ends_well_and_another_takes_its_port(zygote: Zygote) -> None:
    with process(zygote, "0") as (first, address):
        port = address.rpartition(":")[2]
        children = psutil.Process(first.pid).children(recursive=True)
        assert children == []
        with connected(int(port)) as connection:
            body = chat(**ENDLESS, max_tokens=100, stream=True)
            connection.sendall(raw_request("/v1/chat/completions", body, connection="close"))
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            first.send_signal(signal.SIGTERM)
            assert b"data: [DONE]" in read_all(connection)
        assert first.wait(PATIENCE) == 0
        assert "Traceback" not in first.stderr.read()
    with process(zygote, port) as (second, again):
        assert again == address
        with connected(int(port)) as connection:  # the second signal does not wait for anybody
            connection.sendall(raw_request("/v1/chat/completions", chat(**ENDLESS, stream=True)))
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            second.send_signal(signal.SIGINT)
            time.sleep(0.01)
            second.send_signal(signal.SIGINT)
            assert second.wait(PATIENCE) in (0, 130)  # 0 where the answer was over before the second came


def test_r28_second_signal_ends_the_process(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with serving(cria) as server:

        async def twice() -> None:
            server.server.stop()
            server.server.stop()

        asyncio.run_coroutine_threadsafe(twice(), server.loop).result(PATIENCE)
    assert codes == [130]


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes by which the process would have ended at once, with little patience for steps."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(run, "PATIENCE", 0.05)
    return ended


def test_r28_a_step_that_does_not_end_holds_up_no_process(cria: LLM, codes: list[int]) -> None:
    held, began = threading.Event(), threading.Event()
    with serving(cria, drain_timeout=0.1) as server, ExitStack() as stack:
        engine = server.model.engine
        connections = [stack.enter_context(connected(server.port)) for _ in CUT]
        for connection, (path, (body, _)) in zip(connections, CUT.items(), strict=True):
            connection.sendall(raw_request(path, {**body, **ENDLESS, "stream": True}, connection="close"))
        wait_until(lambda: engine.stats.running == len(CUT), "the requests")
        engine.call(lambda: began.set() or held.wait())  # as a step that compiles kernels
        assert began.wait(PATIENCE)
        with connected(server.port) as queued:
            queued.sendall(raw_request("/v1/chat/completions", chat(), connection="close"))
            wait_until(lambda: server.in_flight == len(CUT) + 1, "one that the engine has not seen")
            stop(server)
            assert b'"code":"aborted"' in read_all(queued)
        for connection, (path, (_, error)) in zip(connections, CUT.items(), strict=True):
            assert read_all(connection).count(error) == 1, path
        wait_until(lambda: codes == [0], "the end of the process")
        held.set()


def test_r28_a_model_that_loads_again_holds_up_no_process(cria: LLM, codes: list[int]) -> None:
    held, began = threading.Event(), threading.Event()

    def load() -> Engine:
        began.set()
        held.wait()
        return cria.engine()

    with serving(cria, load=load) as server, connected(server.port) as waiting:
        served = server.model.served
        asyncio.run_coroutine_threadsafe(served.unload(), server.loop).result(PATIENCE)
        waiting.sendall(raw_request("/v1/chat/completions", chat(), connection="close"))
        assert began.wait(PATIENCE)
        stop(server)
        wait_until(lambda: codes == [0], "the end of the process")
        held.set()
