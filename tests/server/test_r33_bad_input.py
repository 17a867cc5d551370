"""R33: whatever a body is, the answer is an error object of 4xx, and the next request is served."""

import socket
from contextlib import suppress

import httpx
import pytest

from tests.server.bad_input import BODIES, ENDPOINTS, written
from tests.server.serving import JSON, Running, chat, connected


def complaint(answer: httpx.Response) -> str | None:
    """What is wrong with an answer to bad input."""
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:100]}"
    error = answer.json()["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"] or len(error["message"]) > 700:
        return f"no error object: {answer.text[:100]}"
    return None if "x-request-id" in answer.headers else "no x-request-id"


@pytest.mark.parametrize("path", ENDPOINTS)
def test_r33_every_bad_body_is_refused(server: Running, path: str) -> None:
    steps = server.model.engine.stats.steps
    bodies = {**BODIES, **{f"{number}": written(body) for number, body in enumerate(ENDPOINTS[path]())}}
    found = {}
    for name, body in bodies.items():
        if wrong := complaint(server.post(path, body)):
            found[f"{name}: {body[:150]!r}"] = wrong
    assert found == {}
    answer = server.post("/v1/chat/completions", chat(max_tokens=2))
    assert answer.status_code == 200
    assert server.model.engine.stats.steps > steps
    assert server.in_flight == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=a"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
    ],
)
def test_r33_other_kinds_of_bodies_are_refused(server: Running, headers: dict[str, str], status: int) -> None:
    answer = server.client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert (answer.status_code, complaint(answer)) == (status, None)


@pytest.mark.parametrize(
    "head",
    [
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"x-long: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["chunk size", "negative chunk", "negative length", "two lengths", "long header"],
)
def test_r33_broken_http_is_refused(server: Running, head: bytes) -> None:
    with connected(server.port) as connection:
        start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        connection.sendall(start + head)
        with suppress(OSError):  # the server may have hung up by now
            connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.get("/health").status_code == 200


def test_r33_a_chunked_body_is_counted_as_it_comes(server: Running) -> None:
    answer = server.client.post("/v1/completions", content=iter([b"a" * 100_000] * 21), headers=JSON)
    assert (answer.status_code, complaint(answer)) == (413, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "\0"}]},
        {"messages": [{"role": "assistant", "content": "a"}] * 2},
        {"messages": [{"role": "user", "content": ""}]},
        {"temperature": 1e-300},
        {"temperature": 0.0, "top_p": 1e-300},
        {"logit_bias": {str(i): -100 for i in range(1000)}},
        {"stop": ["a", "ab", "abc"]},
        {"top_k": -1, "seed": -(2**63)},
        {"seed": 2**63 - 1, "n": 2, "temperature": 1},
        {"new": {"field": [1]}, "suffix": None, "functions": [], "modalities": ["text"]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": 10**9}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": 10**18}}}},
        {"grammar": "start:"},
        {"regex": "(a+)+b"},
        {"regex": "((a{1,100}){1,100}){1,100}"},
    ],
)
def test_r33_what_is_odd_and_allowed_is_answered(server: Running, fields: dict[str, object]) -> None:
    answer = server.post("/v1/chat/completions", chat(max_tokens=3) | fields)
    assert answer.status_code == 200 or complaint(answer) is None, answer.text
