"""R22: a full queue answers at once, and nothing is tokenized for those who are sent away."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamita.engine.limits import EngineLimits
from llamita.llm import LLM
from llamita.server.keys import Keys
from tests.server.serving import Running, chat, connected, raw_request, serving, wait_until

RUNNING, QUEUED, ASKED = 2, 4, 40


def test_r22_overload_is_refused_and_passes(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = EngineLimits(max_num_seqs=RUNNING, max_num_queued=QUEUED, max_num_batched_tokens=64)
    tokenized: list[Any] = []
    held = threading.Event()
    real: Callable[..., Any] = cria.tokenizer.encode_parts

    def counted(parts: Any) -> Any:
        tokenized.append(parts)
        held.wait(300)
        return real(parts)

    with serving(cria, limits=limits) as server:
        monkeypatch.setattr(type(cria.tokenizer), "encode_parts", lambda _, parts: counted(parts))
        answers: list[Any] = []

        def ask() -> None:
            answers.append(server.post("/v1/chat/completions", chat(max_tokens=2)))

        threads = [threading.Thread(target=ask) for _ in range(ASKED)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == ASKED - RUNNING - QUEUED, "the refusals")
        assert server.get("/ready").status_code == 503
        assert server.get("/health").status_code == 200
        refused = list(answers)
        held.set()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in refused} == {429}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        assert [answer.status_code for answer in answers if answer not in refused] == [200] * (RUNNING + QUEUED)
        assert len(tokenized) == RUNNING + QUEUED
        assert server.get("/ready").status_code == 200
        assert server.metric("requests_rejected_total", reason="queue_full") == ASKED - RUNNING - QUEUED


@contextmanager
def full(cria: LLM, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Running]:
    """A server with as many requests as it takes, one, which is held as long as this lasts."""
    held, has_begun = threading.Event(), threading.Event()
    real: Callable[..., Any] = cria.tokenizer.encode_parts

    def hold(parts: Any) -> Any:
        has_begun.set()
        held.wait(300)
        return real(parts)

    with serving(cria, limits=EngineLimits(max_num_seqs=1, max_num_queued=0), **settings) as server:
        monkeypatch.setattr(type(cria.tokenizer), "encode_parts", lambda _, parts: hold(parts))
        with connected(server.port) as first:
            first.sendall(raw_request("/v1/chat/completions", chat(max_tokens=1), **KEY))
            assert has_begun.wait(300)
            try:
                yield server
            finally:
                held.set()
            assert first.recv(12) == b"HTTP/1.1 200"


KEY = {"authorization": "Bearer right"}


def asked(connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer to a request."""
    connection.sendall(data)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", head)
    while len(body) < int(length):
        body += connection.recv(4096)
    return head, body


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


def test_r22_a_whole_request_is_refused_before_it_is_parsed(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other: with its id, counted, on a connection that stays. What is no plain request goes the long way."""
    with full(cria, monkeypatch) as server, connected(server.port) as connection:
        parsed, read = [], H11Protocol.data_received
        monkeypatch.setattr(H11Protocol, "data_received", lambda self, data: (parsed.append(data), read(self, data)))
        for path in PATHS:
            head, body = asked(connection, raw_request(path, chat(), **{"X-Request-Id": "mine"}))
            assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert {b"x-request-id: mine", b"retry-after: 1", b"content-type: application/json"} <= set(
                head.split(b"\r\n")
            )
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
        assert not parsed
        assert server.metric("requests_rejected_total", reason="queue_full") == len(PATHS)
        assert server.metric("http_requests_total", handler=PATHS[0], status="429") == 1
        head, _ = asked(connection, raw_request(PATHS[0], chat(), connection="x, keep-alive"))
        assert head.startswith(b"HTTP/1.1 429 ")
        head, _ = asked(connection, raw_request("/tokenize", {"prompt": "a", "model": "none"}))
        assert head.startswith(b"HTTP/1.1 404 ")
        assert len(parsed) == 2


def test_r22_who_may_not_ask_learns_nothing_of_the_load(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(cria, monkeypatch, keys=Keys.of(["right"])) as server, connected(server.port) as connection:
        for headers, status in (({}, b"401"), ({"authorization": "Bearer wrong"}, b"401"), (KEY, b"429")):
            head, _ = asked(connection, raw_request(PATHS[0], chat(), **headers))
            assert head.split()[1] == status


def test_r22_those_who_come_at_one_instant_count_before_they_are_admitted(cria: LLM) -> None:
    most = RUNNING + QUEUED
    with (
        serving(cria, limits=EngineLimits(max_num_seqs=RUNNING, max_num_queued=QUEUED)) as server,
        ExitStack() as stack,
    ):
        connections = [stack.enter_context(connected(server.port)) for _ in range(ASKED)]
        wait_until(lambda: len(server.server.server_state.connections) == ASKED, "all of them")
        server.loop.call_soon_threadsafe(time.sleep, 0.3)  # so that the loop finds all of them at once
        for connection in connections:
            connection.sendall(raw_request(PATHS[0], chat(max_tokens=2)))
        found = [connection.recv(12)[9:] for connection in connections]
        assert (found.count(b"200"), found.count(b"429")) == (most, ASKED - most)
        wait_until(lambda: not server.in_flight, "the end")
        assert server.server.app.state.arrivals.count == 0
        assert server.post(PATHS[0], chat(max_tokens=1)).status_code == 200
