"""What a server begins with is left out of garbage collections for as long as it listens."""

import gc
import socket

import pytest

from llamita.server.run import Server


def test_garbage_is_as_before_when_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls alone: what the tests have frozen stays so."""
    calls: list[str] = []

    async def listen(*_: object) -> None:
        calls.append("listen")

    monkeypatch.setattr(Server, "_listen", listen)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    for name in ("collect", "freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    server = object.__new__(Server)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server.listen(listener)
    assert calls == ["collect", "freeze", "listen", "unfreeze"]
