"""What a server begins with is left out of garbage collections, and still freed when a model is unloaded."""

import gc
import socket
from collections.abc import Iterator
from weakref import ref

import pytest

from llamita.server import garbage
from llamita.server.run import Server


class Circle:
    """An object that holds itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def nothing_is_frozen() -> Iterator[None]:
    gc.unfreeze()  # what another test of this process left so
    yield
    gc.unfreeze()


def test_what_there_is_is_left_out() -> None:
    circle = Circle()
    held = ref(circle)
    garbage.freeze()
    del circle
    gc.collect()
    assert held() is not None
    garbage.collect()
    assert held() is None
    assert gc.get_freeze_count() > 0


def test_nothing_is_left_out_where_nothing_was() -> None:
    held = ref(Circle())
    garbage.collect()
    assert held() is None
    assert gc.get_freeze_count() == 0


def test_a_server_collects_as_before_when_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    async def listen(*_: object) -> None:
        counts.append(gc.get_freeze_count())

    monkeypatch.setattr(Server, "_listen", listen)
    server = object.__new__(Server)
    server.exit_code = 3
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert server.listen(listener) == 3
    assert counts[0] > 0 == gc.get_freeze_count()
