"""Host headers and keys, as they come."""

import pytest

from llamita.server.access import given_key, host_name
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
