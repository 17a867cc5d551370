"""R34: the security tests of serving.md 4.1 that are about the server, by their ids."""

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.server.access import host_name, named_host
from llamita.server.anthropic import messages as message_handler
from llamita.server.anthropic.answer import MessageAnswer
from llamita.server.keys import Keys
from llamita.server.openai import chat as chat_handler
from tests.server.serving import Running, chat, connected, serving, wait_until

FIRST, SECOND, ADMIN = "first-key", "second-key", "admin-key"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(cria: LLM) -> Iterator[Running]:
    """A server with two keys, and one for its metrics."""
    with serving(cria, keys=Keys.of([FIRST, SECOND]), admin_keys=Keys.of([ADMIN])) as running:
        yield running


def raw(server: Running, head: bytes) -> int:
    """The status of a request of exactly these bytes, 0 where the server hangs up."""
    with connected(server.port) as connection:
        connection.sendall(head)
        answer = connection.recv(4096)
    return int(answer.split(b" ")[1]) if answer else 0


def test_ts11_every_path_but_the_open_ones_needs_a_key(locked: Running) -> None:
    paths = {route.path for route in locked.server.app.routes}  # pyright: ignore[reportAttributeAccessIssue]
    assert len(paths) > 10
    for path in paths:
        path = path.replace("{model:path}", "cria")
        for method in ("GET", "POST", "HEAD", "OPTIONS", "TRACE", "PUT", "get"):
            answer = locked.client.request(method, path)
            if path in ("/health", "/ready", "/") or path.startswith("/page/"):  # the page holds no secret
                assert answer.status_code in (200, 405)
            else:
                assert answer.status_code == 401, (method, path)
    answer = locked.get("/v1/models")
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1/health?x=",
        b"GET /v1/models HTTP/1.1\r\nhost: a/?x=",
        b"GET /v1/models HTTP/1.1\r\nhost: x/health?",
        b"GET /v1/models HTTP/1.1\r\nhost: x/#",
        b"GET //v1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /health/../v1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /v1/../health/../v1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /%76%31/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /%2e%2e/v1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /health%2f..%2fv1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /v1/models/ HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /v1/models?x=/health HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET http://127.0.0.1/health/v1/models HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade",
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx-original-url: /health\r\nx-forwarded-prefix: /health",
        b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1",
        b"GET /HEALTH HTTP/1.1\r\nhost: 127.0.0.1",
    ],
)
def test_ts11_no_spelling_gets_around_the_key(locked: Running, line: bytes) -> None:
    assert raw(locked, line + b"\r\nconnection: close\r\n\r\n") in (400, 401, 403)


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_ts12_every_key_opens_by_either_header(locked: Running, key: str) -> None:
    assert locked.get("/v1/models", **bearer(key)).status_code == 200
    assert locked.get("/v1/models", **{"x-api-key": key}).status_code == 200
    assert locked.get("/v1/models", authorization=f"bearer  {key}").status_code == 200


@pytest.mark.parametrize(
    "given", [b"Bearer \xe9", b"Bearer", b"Bearer ", b"Basic first-key", b"first-key", b"\xff" * 99]
)
def test_ts12_odd_headers_are_401(locked: Running, given: bytes) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: " + given
    assert raw(locked, head + b"\r\nconnection: close\r\n\r\n") == 401


def test_ts13_keys_share_no_cached_prompts(locked: Running) -> None:
    body = {"model": "cria", "prompt": "A prompt that only one of both has sent before, word by word.", "max_tokens": 1}

    def cached(key: str) -> int:
        usage = locked.post("/v1/completions", body, **bearer(key)).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    for key in (FIRST, SECOND):
        assert cached(key) <= 1  # the token that begins every text
        assert cached(key) > 1


def test_ts14_nothing_crosses_from_one_request_to_another(server: Running, cria: LLM) -> None:
    with ThreadPoolExecutor(16) as pool:
        pairs = list(pool.map(lambda number: ask_then(server, number), range(64)))
    for number, text in pairs:
        assert number % 4 or text == f"canary {number}"
    for number, text in pairs[:16]:
        assert text == expected(cria, number), number


def fields_of(number: int) -> dict[str, Any]:
    """Settings that no other request has."""
    table: list[dict[str, Any]] = [
        {"choice": [f"canary {number}"]},
        {"temperature": 1 + number / 100, "seed": number, "max_tokens": 12},
        {"logit_bias": {300 + number: 100}, "max_tokens": 3},
        {"repetition_penalty": 1 + number / 50, "max_tokens": 12},
    ]
    return {"temperature": 0, **table[number % 4]}


def ask_then(server: Running, number: int) -> tuple[int, str]:
    answer = server.post("/v1/chat/completions", chat(f"This is text {number}.", **fields_of(number)))
    return number, answer.json()["choices"][0]["message"]["content"]


def expected(llm: LLM, number: int) -> str:
    """What the model writes alone."""
    return llm.chat([{"role": "user", "content": f"This is text {number}."}], **fields_of(number)).text


def test_ts14_a_client_s_request_id_is_an_echo_and_nothing_else(server: Running) -> None:
    assert server.get("/health", **{"x-request-id": "mine-1.a_b"}).headers["x-request-id"] == "mine-1.a_b"
    for given in ("a b", "a" * 65, "<script>", ""):
        assert server.get("/health", **{"x-request-id": given}).headers["x-request-id"].startswith("req_")


def test_ts15_the_server_opens_no_connections(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = socket.socket.connect

    def watched(own: socket.socket, address: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            opened.append(address)
        real(own, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    url = "http://169.254.169.254/latest"
    image = {"type": "image_url", "image_url": {"url": url}}
    for content in (f"![a]({url})", [image], [{"type": "text", "text": url}, image]):
        server.post("/v1/chat/completions", chat(max_tokens=2) | {"messages": [{"role": "user", "content": content}]})
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": url}}}
    assert server.post("/v1/chat/completions", chat(response_format=schema)).status_code == 400
    for block in ({"type": "image", "source": {"type": "url", "url": url}}, {"type": "input_image", "image_url": url}):
        turns = [{"role": "user", "content": [block]}]
        for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/responses/input_tokens"):
            body = {"model": "cria", "max_tokens": 2, "messages": turns, "input": turns}
            assert server.post(path, body).status_code == 400
    servers = {"mcp_servers": [{"type": "url", "url": url, "name": "a"}]}
    assert server.post("/v1/messages", chat(max_tokens=2) | servers).status_code == 400
    assert opened == []


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fetc%2fpasswd", "/docs/../../etc/passwd",
     "/v1/models/\0", "/v1/models/%00", "/v1/models/%2fetc%2fpasswd", "/static/%5c..%5c"],
)  # fmt: skip
def test_ts16_no_path_reaches_a_file(server: Running, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    assert raw(server, head.encode()) in (400, 404)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "127.0.0.1:80:80"])
def test_ts17_other_host_names_are_refused(server: Running, host: str) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    assert raw(server, head.encode()) in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "LOCALHOST"])
def test_ts17_names_of_this_machine_are_answered(server: Running, host: str) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    assert raw(server, head.encode()) == 200


def test_ts10_a_body_with_two_lengths_is_refused_and_ends_the_connection(server: Running) -> None:
    start = (
        b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 60\r\n"
    )
    hidden = (
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"  # a part of the body by its length, and none by its chunks
    )
    with connected(server.port) as connection:
        connection.sendall(start + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + hidden)
        answer = b"".join(iter(partial(connection.recv, 4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("version", "code"), [("1.0", 200), ("1.1", 400)])
def test_ts17_only_http_1_0_needs_no_host_name(server: Running, version: str, code: int) -> None:
    assert raw(server, f"GET /v1/models HTTP/{version}\r\nconnection: close\r\n\r\n".encode()) == code


def test_ts17_pages_of_other_sites_are_let_in_by_no_header(server: Running) -> None:
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answers = [server.get("/v1/models", **origin), server.client.options("/v1/models", headers=origin)]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


def test_ts17_a_server_for_others_answers_to_the_names_it_is_given(cria: LLM) -> None:
    with serving(cria, allowed_hosts=("llama.example",)) as server:
        assert server.get("/health", host="Llama.example:80").status_code == 200
        assert server.get("/health", host="127.0.0.1").status_code == 200  # as a probe on this machine asks
        assert server.get("/health", host="evil.example").status_code == 403


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Llama.Example", "llama.example"),
        ("a.b:8080", "a.b"),
        ("2001:DB8::5:1", "[2001:db8::5:1]"),
        ("[::1]:80", "[::1]"),
    ],
)
def test_ts17_a_name_is_allowed_however_it_is_written(given: str, name: str) -> None:
    assert named_host(given) == name == host_name(f"{name.upper()}:8000".encode())


@pytest.mark.parametrize("given", ["*", "", "https://a.example", "a.example/", "a, b", "é.example", "*.example"])
def test_ts17_what_no_host_header_has_is_no_name(given: str) -> None:
    with pytest.raises(UsageError, match="--allowed-host is"):
        named_host(given)


def test_ts19_logs_hold_no_line_ends_prompts_or_keys(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="llamita.server"):
        locked.get("/a%0d%0a2026-01-01 INFO forged%1b[31m", **bearer(FIRST))
        locked.get("/" + "a" * 5000, **bearer(FIRST))
        locked.post("/v1/chat/completions", chat("a secret prompt", max_tokens=2), **bearer(FIRST))
        locked.get("/v1/models", **bearer("a wrong key"), **{"x-request-id": "the-last"})
        wait_until(lambda: "the-last" in caplog.text, "the last line")
    lines = [record.getMessage() for record in caplog.records if record.name == "llamita.server"]
    assert len(lines) >= 4
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    assert not any(secret in line for line in lines for secret in ("secret", FIRST, "wrong key"))


def test_ts20_metrics_need_the_admin_key(locked: Running) -> None:
    assert [locked.get("/metrics", **bearer(key)).status_code for key in (FIRST, "x", ADMIN)] == [401, 401, 200]
    assert locked.get("/v1/models", **bearer(ADMIN)).status_code == 401


def test_ts20_metrics_need_a_key_where_clients_do(cria: LLM) -> None:
    with serving(cria, keys=Keys.of([FIRST])) as server:
        assert [server.get("/metrics", **headers).status_code for headers in ({}, bearer(FIRST))] == [401, 200]


WRITERS = {
    "/v1/chat/completions": ((chat_handler.ChatAnswer, "_ending"), (chat_handler, "chat_items")),
    "/v1/messages": ((MessageAnswer, "_ending"), (message_handler, "message_item")),
}


@pytest.mark.parametrize("path", WRITERS)
@pytest.mark.parametrize("stream", [True, False])
def test_ts21_unforeseen_errors_disclose_nothing(
    server: Running, path: str, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("0x7f00 /home/secret")

    monkeypatch.setattr(*WRITERS[path][not stream], fail)
    answer = server.post(path, chat(stream=stream, max_tokens=2))
    assert answer.status_code == (200 if stream else 500)
    assert "secret" not in answer.text
    assert ("api_error" if path == "/v1/messages" else "server_error") in answer.text
    assert answer.headers["x-request-id"] in answer.text
    if not stream:
        assert answer.headers["x-should-retry"] == "false"
    assert "secret" in caplog.text  # the operator can read it
    wait_until(lambda: server.in_flight == 0, "the end of the request")
