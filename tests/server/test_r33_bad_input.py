"""R33: whatever a body is, the answer is an error object of 4xx, and the next request is served."""

import json
import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.server.bad_input import BODIES, ENDPOINTS, written
from tests.server.bad_messages import MESSAGE_ENDPOINTS
from tests.server.bad_responses import RESPONSE_ENDPOINTS
from tests.server.serving import JSON, Running, chat, connected

ALL_ENDPOINTS = {**ENDPOINTS, **RESPONSE_ENDPOINTS, **MESSAGE_ENDPOINTS}


def complaint(answer: httpx.Response) -> str | None:
    """What is wrong with an answer to bad input."""
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:100]}"
    body = answer.json()
    error, is_anthropics = body["error"], answer.request.url.path.startswith("/v1/messages")
    fields = {"message", "type"} if is_anthropics else {"message", "type", "param", "code"}
    if set(error) != fields or not error["message"] or len(error["message"]) > 700:
        return f"no error object: {answer.text[:100]}"
    if is_anthropics and (body["type"], body["request_id"]) != ("error", answer.headers["request-id"]):
        return f"no error of Anthropic's: {answer.text[:100]}"
    return None if "x-request-id" in answer.headers else "no x-request-id"


@pytest.mark.parametrize("path", ALL_ENDPOINTS)
def test_r33_ts8_ts9_ts10_every_bad_body_is_refused(server: Running, path: str) -> None:
    steps = server.model.engine.stats.steps
    bodies = {**BODIES, **{f"{number}": written(body) for number, body in enumerate(ALL_ENDPOINTS[path]())}}
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
def test_r33_ts10_broken_http_is_refused(server: Running, head: bytes) -> None:
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
def test_r33_ts7_what_is_odd_and_allowed_is_answered(server: Running, fields: dict[str, object]) -> None:
    answer = server.post("/v1/chat/completions", chat(max_tokens=3) | fields)
    assert answer.status_code == 200 or complaint(answer) is None, answer.text


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


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a", "best_of": 1, "suffix": "", "logprobs": 0}),
        ("/v1/completions", {"prompt": "a", "n": 2, "best_of": 2}),
        ("/v1/chat/completions", {"top_logprobs": 0, "logprobs": False}),
        ("/v1/chat/completions", {"ignore_eos": False, "min_tokens": 0, "stop_token_ids": [], "guided_json": None}),
        ("/v1/chat/completions", {"chat_template_kwargs": {}, "add_generation_prompt": True, "echo": False}),
        ("/v1/messages", {"tools": [{"name": "7" + "a" * 127, "input_schema": {}}]}),
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": {"name": "7-zip"}}]}),
    ],
)
def test_r33_what_clients_send_along_is_taken(server: Running, path: str, fields: dict[str, Any]) -> None:
    answer = server.post(path, {**chat(), "max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text


def test_r33_a_schema_beside_json_object_is_kept_to(server: Running) -> None:
    form = {"type": "json_object", "schema": {"const": {"a": 42}}}
    answer = server.post("/v1/chat/completions", chat(response_format=form))
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"a": 42}


CALLS = [f'{{"name": "f", "parameters": {{"a": {value}}}}}' for value in ("1e999", "NaN", '"\\ud800"')]


@pytest.mark.parametrize("text", [*CALLS, "[f(a=1e999)]"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_r33_a_call_that_no_json_can_carry_is_a_text(server: Running, path: str, text: str) -> None:
    name = "function" if path == "/v1/chat/completions" else "custom"
    tool: dict[str, Any] = {"type": name, "function": {"name": "f"}, "name": "f", "input_schema": {}}
    body = {**chat(), "tools": [tool], "choice": [text], "max_tokens": 60}
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert json.dumps(text)[1:-1] in json.dumps(answer.json())


def test_r33_many_texts_are_embedded_at_once(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"model": "cria", "input": ["a"] * 100})
    assert len(answer.json()["data"]) == 100
