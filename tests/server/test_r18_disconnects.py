"""R18, R19: clients that leave take their requests along: streamed or not, running or waiting."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from llamita.engine.limits import EngineLimits
from llamita.llm import LLM
from tests.server.serving import Running, chat, connected, raw_request, serving, wait_until

MANY = 200
LONG = {"max_tokens": 450, "temperature": 1, "logit_bias": {"2041": -100, "2045": -100, "2046": -100}}  # no end token


@pytest.fixture
def narrow(cria: LLM) -> Iterator[Running]:
    """A server that writes two texts at once; the rest waits."""
    with serving(cria, limits=EngineLimits(max_num_seqs=2, max_num_queued=MANY, max_num_batched_tokens=64)) as running:
        yield running


def is_empty(server: Running) -> bool:
    stats = server.model.engine.stats
    return (stats.running, stats.waiting, server.in_flight) == (0, 0, 0)


def test_r18_a_storm_of_disconnects_leaves_nothing_running(narrow: Running) -> None:
    """Half of them stream; two are written and the others wait."""
    before = narrow.metric("requests_aborted_total", reason="disconnect")
    with ExitStack() as stack:
        for number in range(MANY):
            connection = stack.enter_context(connected(narrow.port))
            connection.sendall(raw_request("/v1/chat/completions", chat(**LONG, stream=number % 2 == 0)))
        wait_until(lambda: narrow.model.engine.stats.waiting == MANY - 2, "all requests")
    wait_until(lambda: is_empty(narrow), "an empty engine")
    assert narrow.metric("requests_aborted_total", reason="disconnect") - before == MANY
    answer = narrow.post("/v1/chat/completions", chat(max_tokens=2))
    assert answer.status_code == 200
    stats = narrow.model.engine.stats
    assert stats.free_blocks == stats.blocks


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "running"])
def test_r19_one_disconnect_ends_one_request(narrow: Running, stream: bool, waits: bool) -> None:
    with ExitStack() as others:
        for _ in range(2 if waits else 0):
            connection = others.enter_context(connected(narrow.port))
            connection.sendall(raw_request("/v1/chat/completions", chat(**LONG)))
        wait_until(lambda: narrow.model.engine.stats.running == (2 if waits else 0), "the others")
        with connected(narrow.port) as mine:
            mine.sendall(raw_request("/v1/chat/completions", chat(**LONG, stream=stream)))
            wait_until(lambda: narrow.in_flight == (3 if waits else 1), "mine")
            mine.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: narrow.in_flight == (2 if waits else 0), "the end of mine")
    wait_until(lambda: is_empty(narrow), "the end of all")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "Once", "n": 2, "max_tokens": 450}),
        ("/v1/completions", {"prompt": ["Once", "Mia"], "max_tokens": 450, "stream": True}),
        ("/v1/responses", {"input": "Once"}),
        ("/v1/responses", {"input": "Once", "stream": True}),
        ("/v1/messages", chat(**LONG)),
        ("/v1/messages", chat(**LONG, stream=True)),
    ],
)
def test_r19_holds_for_every_endpoint(narrow: Running, path: str, fields: dict[str, Any]) -> None:
    body = {"model": "cria", "temperature": 1, "logit_bias": LONG["logit_bias"]}
    with connected(narrow.port) as mine:
        mine.sendall(raw_request(path, {**body, **fields}))
        wait_until(lambda: narrow.model.engine.stats.running > 0, "a running request")
    wait_until(lambda: is_empty(narrow), "an empty engine")


def test_r19_holds_for_embeddings(narrow: Running) -> None:
    read: list[int] = []
    embed = narrow.model.engine.last_hidden_state

    def noted(ids: list[int], adapter: str | None) -> Any:
        read.append(len(ids))
        return embed(ids, adapter)

    with pytest.MonkeyPatch.context() as patched, connected(narrow.port) as mine:
        patched.setattr(narrow.model.engine, "last_hidden_state", noted)
        mine.sendall(raw_request("/v1/embeddings", {"model": "cria", "input": [[number] for number in range(2048)]}))
        wait_until(lambda: bool(read), "the first text")
        mine.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: narrow.in_flight == 0, "the end of mine")
        narrow.model.engine.call(lambda: None).result(300)
        count = len(read)
        assert narrow.post("/v1/embeddings", {"model": "cria", "input": "a"}).status_code == 200
        assert len(read) == count + 1 < 2048
