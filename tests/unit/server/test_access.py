"""Host headers and keys, as they come."""

import asyncio
from contextlib import nullcontext

import pytest

from llamita.server.access import HostCheck, given_key, host_name
from llamita.server.errors import RequestError
from llamita.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"localhost:8080", "localhost"), (b"LOCALHOST", "localhost"), (b"[::1]:8080", "[::1]"), (b"[::1]", "[::1]"),
        (b"a/?x=:80", "a/?x="), (b"", ""), (b"127.0.0.1:", "127.0.0.1:"), (b"\xe9", "é"),
    ],
)  # fmt: skip
def test_name_without_port(header: bytes, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer a")], b"a"),
        ([(b"authorization", b"BEARER  a ")], b"a"),
        ([(b"x-api-key", b"a")], b"a"),
        ([(b"authorization", b"Basic a")], None),
        ([(b"authorization", b"Bearer "), (b"x-api-key", b"b")], b"b"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], b"a"),
        ([], None),
    ],
)
def test_key_of_either_header(headers: list[tuple[bytes, bytes]], key: bytes | None) -> None:
    assert given_key({"headers": headers}) == key


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_local_addresses(host: str, is_local: bool) -> None:
    assert ServerSettings(host=host).is_local == is_local


@pytest.mark.parametrize(
    ("host", "names", "header", "is_answered"),
    [
        ("127.9.9.9", None, b"127.9.9.9:80", True),
        ("127.9.9.9", None, b"evil.example", False),
        ("10.1.2.3", ("a.b",), b"10.1.2.3", True),
        ("fe80::a", ("a.b",), b"[fe80::a]:80", True),
        ("0.0.0.0", ("a.b",), b"0.0.0.0", False),
        ("0.0.0.0", None, b"anything", True),
    ],
)
def test_a_server_answers_to_the_address_it_is_bound_to(
    host: str, names: tuple[str, ...] | None, header: bytes, is_answered: bool
) -> None:
    asked: list[object] = []

    async def app(*_: object) -> None:
        asked.append(host)

    check = HostCheck(app, settings=ServerSettings(host=host, allowed_hosts=names))
    with nullcontext() if is_answered else pytest.raises(RequestError):
        asyncio.run(check({"type": "http", "http_version": "1.1", "headers": [(b"host", header)]}, None, None))  # type: ignore[arg-type]
    assert bool(asked) == is_answered
