"""R21: connections that say nothing, or too slowly, hold up nobody: they are few, and closed in time."""

import socket
from contextlib import ExitStack

from llamita.llm import LLM
from tests.server.serving import PATIENCE, chat, connected, raw_request, serving, wait_until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-"


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes; nothing where it does so without a word."""
    pieces = []
    try:
        while piece := connection.recv(4096):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def test_r21_half_open_headers_are_closed_and_healthy_clients_served(cria: LLM) -> None:
    with serving(cria, header_timeout=0.3) as server, ExitStack() as stack:
        silent = [stack.enter_context(connected(server.port)) for _ in range(50)]
        halves = [stack.enter_context(connected(server.port)) for _ in range(50)]
        for connection in halves:
            connection.sendall(HEAD)
        assert server.post("/v1/chat/completions", chat(max_tokens=2)).status_code == 200
        for connection in (*silent, *halves):
            assert received(connection) == b""
        wait_until(lambda: len(server.server.server_state.connections) <= 1, "the end of the hundred")
        assert server.get("/health").status_code == 200


def test_r21_a_second_head_on_one_connection_has_its_own_time(cria: LLM) -> None:
    with serving(cria, header_timeout=0.3) as server, connected(server.port) as connection:
        for _ in range(2):
            connection.sendall(raw_request("/v1/chat/completions", chat(max_tokens=2)))
            assert connection.recv(12) == b"HTTP/1.1 200"
            wait_until(lambda: server.in_flight == 0, "its end")
            connection.settimeout(0.02)
            try:
                while connection.recv(65536):
                    pass
            except TimeoutError:
                connection.settimeout(PATIENCE)
        connection.sendall(HEAD)
        assert received(connection) == b""


def test_r21_slow_bodies_are_408(cria: LLM) -> None:
    with serving(cria, body_timeout=0.3) as server, ExitStack() as stack:
        slow = [stack.enter_context(connected(server.port)) for _ in range(100)]
        for connection in slow:
            connection.sendall(raw_request("/v1/chat/completions", chat())[:-5])
        assert server.post("/v1/chat/completions", chat(max_tokens=2)).status_code == 200
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 408"


def test_r21_more_connections_than_allowed_are_503_until_some_are_gone(cria: LLM) -> None:
    with serving(cria, max_connections=20) as server:
        with ExitStack() as stack:
            held = [stack.enter_context(connected(server.port)) for _ in range(20)]
            wait_until(lambda: len(server.server.server_state.connections) == 20, "the twenty")
            with connected(server.port) as one_more:
                one_more.sendall(raw_request("/v1/chat/completions", chat(), connection="close"))
                head, _, body = received(one_more).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert b'"code": "too_many_connections"' in body
            held[0].sendall(raw_request("/v1/chat/completions", chat(max_tokens=2)))
            assert held[0].recv(12) == b"HTTP/1.1 200"  # those that are in stay in
        wait_until(lambda: not server.server.server_state.connections, "the end of the twenty")
        answer = server.post("/v1/chat/completions", chat(max_tokens=2))
        assert answer.status_code == 200


def test_r21_a_request_in_pieces_is_read(cria: LLM) -> None:
    with serving(cria) as server, connected(server.port) as connection:
        for byte in raw_request("/v1/chat/completions", chat(max_tokens=2)):
            connection.sendall(bytes([byte]))
        assert connection.recv(12) == b"HTTP/1.1 200"
