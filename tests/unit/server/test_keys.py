"""Keys: every one is compared, by its digest, and a file of them is read with care."""

import secrets
from pathlib import Path

import pytest

from llamita.errors import UsageError
from llamita.server.keys import NO_KEYS, Keys, digest, read_keys


def test_ts12_a_key_is_compared_with_all_without_a_halt(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = secrets.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(secrets, "compare_digest", counted)
    keys = Keys.of(["a", "b", "c"])
    for given in (b"a", b"b", b"c", b"d", b"\xe9"):
        compared.clear()
        assert (keys.id_of(given) is None) == (given not in (b"a", b"b", b"c"))
        assert compared == [(digest(given), digest(key)) for key in (b"a", b"b", b"c")]


def test_ids_of_keys_differ_and_do_not_show_them() -> None:
    keys = Keys.of(["first", "second"])
    assert keys.id_of(b"first") != keys.id_of(b"second")
    assert "first" not in repr(keys)


def test_no_keys_are_false_and_open_nothing() -> None:
    assert not NO_KEYS
    assert NO_KEYS.id_of(b"") is None
    assert Keys.of(["a"]) + Keys.of(["b"]) == Keys.of(["a", "b"])


@pytest.mark.parametrize("key", ["", "a b", "é", "a\n", "a" * 1025, "\x7f"])
def test_keys_that_no_header_carries_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match="visible ASCII"):
        Keys.of([key])


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xef\xbb\xbf# ours\r\nfirst \n\n second\n")
    assert read_keys(path) == ["first", "second"]


@pytest.mark.parametrize("content", [b"", b"#\n \n", b"\xff", b"a" * 1_000_001])
def test_files_without_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="one"):
        read_keys(path)
