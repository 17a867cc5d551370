"""R17: the bytes of a stream, read one by one by a decoder that takes nothing but the standard."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.serving import Running, chat, connected, raw_request

TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def read_events(server: Running, path: str, body: dict[str, Any]) -> list[tuple[str | None, str]]:
    """The events of a POST, as name and data."""
    with connected(server.port) as connection:
        connection.sendall(raw_request(path, {**body, "stream": True}, connection="close"))
        received = iter(lambda: connection.recv(1), b"")  # the decoder must not depend on where reads end
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += next(received)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: text/event-stream; charset=utf-8" in head
        assert b"x-request-id: " in head
        return list(decoded(b"".join(unchunked(received))))


def unchunked(received: Iterator[bytes]) -> Iterator[bytes]:
    """The body of HTTP's chunked coding."""
    while True:
        size = b""
        while not size.endswith(b"\r\n"):
            size += next(received)
        count = int(size, 16)
        piece = b"".join(next(received) for _ in range(count))
        assert next(received) + next(received) == b"\r\n"
        if not count:
            return
        yield piece


def decoded(stream: bytes) -> Iterator[tuple[str | None, str]]:
    """Name and data of each event; AssertionError for anything that our streams must not have."""
    text = stream.decode("ascii")
    assert "\r" not in text
    assert text.endswith("\n\n")
    for block in text[:-2].split("\n\n"):
        lines = block.split("\n")
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        (data,) = lines
        assert data.startswith("data: ")
        yield name, data.removeprefix("data: ")


@pytest.mark.parametrize("usage", [None, False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"tools": [TOOL]}], ids=["text", "logprobs", "tools"])
def test_r17_chat_stream_keeps_the_contract(
    server: Running, fields: dict[str, Any], n: int, usage: bool | None
) -> None:
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    events = read_events(server, "/v1/chat/completions", chat(max_tokens=6, n=n, **options, **fields))
    assert all(name is None for name, _ in events)
    assert events[-1][1] == "[DONE]"
    chunks = [json.loads(data) for _, data in events[:-1]]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    last = chunks.pop() if usage else None
    for number in range(n):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == number]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "length")
        assert all(choice["finish_reason"] is None for choice in own[:-1])
    for chunk in chunks:
        assert len(chunk["choices"]) == 1
        assert ("usage" in chunk, chunk.get("usage")) == (bool(usage), None)
    assert "timings" in chunks[-1]
    if last is not None:
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6 * n


def test_r17_completion_stream_keeps_the_contract(server: Running) -> None:
    body = {"model": "cria", "prompt": ["Once", "Mia"], "max_tokens": 4, "stream_options": {"include_usage": True}}
    events = read_events(server, "/v1/completions", body)
    assert events[-1] == (None, "[DONE]")
    *chunks, last = [json.loads(data) for _, data in events[:-1]]
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {0, 1}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)


def test_r17_response_stream_names_its_events_and_has_no_done(server: Running) -> None:
    events = read_events(server, "/v1/responses", {"model": "cria", "input": "Hello", "max_output_tokens": 4})
    for number, (name, data) in enumerate(events):
        fields = json.loads(data)
        assert (fields["type"], fields["sequence_number"]) == (name, number)
    assert events[-1][0] == "response.incomplete"


def test_r17_message_stream_names_its_events_and_has_no_done(server: Running) -> None:
    events = read_events(server, "/v1/messages", chat(max_tokens=4))
    assert all(json.loads(data)["type"] == name for name, data in events)
    names = [name for name, _ in events]
    assert [name for name in names if name != "ping"][:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_r17_characters_that_some_clients_take_for_line_ends_are_escaped(server: Running) -> None:
    form = {"grammar": 'start: "a\u2028b\\u0085c\\nd"'}
    events = read_events(server, "/v1/chat/completions", chat(**form))
    texts = [json.loads(data)["choices"][0]["delta"].get("content") or "" for _, data in events[:-1]]
    assert "".join(texts) == "a\u2028b\u0085c\nd"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(n=3, max_tokens=1)),
        ("/v1/completions", {"model": "cria", "prompt": "Once", "n": 3, "max_tokens": 1}),
    ],
)
def test_r17_a_stream_of_several_texts_has_one_report(server: Running, path: str, body: dict[str, Any]) -> None:
    *chunks, (_, done) = read_events(server, path, {**body, "receipt": True})
    assert done == "[DONE]"
    events = [json.loads(data) for _, data in chunks]
    reports = [one for one in events if "timings" in one or "receipts" in one]
    assert reports == events[-1:]  # all texts were over before the first end was told
    assert len(reports[0]["receipts"]) == 3
