"""R33: whatever a body is, the answer is an error object of 4xx, and the next request is served."""

import gzip
import json
import socket
from contextlib import suppress
from typing import Any

import pytest

from tests.server.bad_input import ENDPOINTS, GOOD, whole, written
from tests.server.bad_messages import MESSAGE_ENDPOINTS
from tests.server.bad_responses import RESPONSE_ENDPOINTS
from tests.server.refusals import complaint
from tests.server.serving import JSON, Running, chat, connected

ALL_ENDPOINTS = {**ENDPOINTS, **RESPONSE_ENDPOINTS, **MESSAGE_ENDPOINTS}


@pytest.mark.parametrize("path", ALL_ENDPOINTS)
def test_r33_ts8_ts9_ts10_every_bad_body_is_refused(server: Running, path: str) -> None:
    steps = server.model.engine.stats.steps
    assert server.post(path, {"model": "cria", **GOOD[path]}).status_code == 200
    bodies = {**whole(path), **{f"{number}": written(body) for number, body in enumerate(ALL_ENDPOINTS[path]())}}
    found = {}
    for name, body in bodies.items():
        if wrong := complaint(server.post(path, body)):
            found[f"{name}: {body[:150]!r}"] = wrong
    assert found == {}
    answer = server.post("/v1/chat/completions", chat(max_tokens=2))
    assert answer.status_code == 200
    assert server.model.engine.stats.steps > steps
    assert server.in_flight == 0


@pytest.mark.parametrize("path", ALL_ENDPOINTS)
def test_r33_a_model_that_is_not_there_is_404(server: Running, path: str) -> None:
    answer = server.post(path, {**GOOD[path], "model": "unknown"})
    assert (answer.status_code, complaint(answer)) == (404, None)
    error = answer.json()["error"]
    assert "'unknown'" in error["message"]
    assert error["type" if path.startswith("/v1/messages") else "code"] in ("not_found_error", "model_not_found")


@pytest.mark.parametrize("path", ALL_ENDPOINTS)
def test_r33_other_kinds_of_bodies_are_refused(server: Running, path: str) -> None:
    kinds = ("text/plain", "multipart/form-data; boundary=a", "application/x-www-form-urlencoded", "")
    for headers in (*({"content-type": kind} for kind in kinds), {**JSON, "content-encoding": "gzip"}):
        answer = server.client.post(path, content=gzip.compress(b"{}"), headers=headers)
        assert (answer.status_code, complaint(answer)) == (415, None), headers


def test_no_compression_is_named_in_any_case(server: Running) -> None:
    for name in ("identity", "Identity"):
        assert server.post("/tokenize", {"prompt": "a"}, **{"content-encoding": name}).status_code == 200


@pytest.mark.parametrize("path", ALL_ENDPOINTS)
@pytest.mark.parametrize(
    "head",
    [
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        b'content-length: 5\r\n\r\n{"model": "cria"}',
        b'content-length: 500\r\n\r\n{"model": "cria"}',
        b"x-long: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=[
        "chunk size",
        "negative chunk",
        "negative length",
        "two lengths",
        "short length",
        "long length",
        "long header",
    ],
)
def test_r33_ts10_broken_http_is_refused(server: Running, path: str, head: bytes) -> None:
    with connected(server.port) as connection:
        start = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        connection.sendall(start.encode() + head)
        with suppress(OSError):  # the server may have hung up by now
            connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.get("/health").status_code == 200


def test_r33_a_chunked_body_is_counted_as_it_comes(server: Running) -> None:
    answer = server.client.post("/v1/completions", content=iter([b"a" * 100_000] * 21), headers=JSON)
    assert (answer.status_code, complaint(answer)) == (413, None)


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/chat/completions", "POST"), ("/v1/messages", "POST"), ("/v1/models", "GET"), ("/health", "GET")],
)
def test_r33_other_methods_are_refused_by_name(server: Running, path: str, methods: str) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "POST" if methods == "GET" else "GET"):
        answer = server.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"], complaint(answer)) == (405, methods, None)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/cria", "/docs", "/"])
def test_r33_what_can_be_got_has_a_head(server: Running, path: str) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == server.get(path).headers["content-type"]


def answer_to(server: Running, *parts: bytes) -> tuple[bytes, dict[str, Any]]:
    """The status line and the body of the answer to these bytes, whose end closes the connection."""
    with connected(server.port) as connection:
        for part in parts:
            connection.sendall(part)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
def test_r33_what_is_no_http_has_an_error_object_too(server: Running, path: str) -> None:
    start = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
    status, body = answer_to(server, start + b"transfer-encoding: chunked\r\n\r\n", b"zz\r\n")
    assert (status, body["error"]["type"]) == (b"HTTP/1.1 400 Bad Request", "invalid_request_error")
    assert (body.get("type") == "error") == (path == "/v1/messages")
    status, body = answer_to(server, start + b"content-length: -1\r\n\r\n")
    assert (status, body["error"]["code"]) == (b"HTTP/1.1 400 Bad Request", "invalid_http")


def test_r33_bytes_after_an_answer_are_no_defect(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A body that is refused before it has come, and then is no HTTP."""
    start = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: text/plain\r\n"
    with connected(server.port) as connection:
        connection.sendall(start + b"transfer-encoding: chunked\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 415"
        connection.sendall(b"zz\r\n")
        assert b"HTTP/1.1" not in b"".join(iter(lambda: connection.recv(65536), b""))
    assert server.get("/health").status_code == 200
    assert "Traceback" not in caplog.text
