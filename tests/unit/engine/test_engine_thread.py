"""Commands of other threads are run between two steps, or dropped with a reason: none waits for ever."""

import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

import llamita
from llamita.engine.engine import Engine
from llamita.engine.engine_thread import EngineThread
from llamita.errors import AbortedError, ClosedError


@pytest.fixture(scope="module")
def engine(small_path: Path) -> Engine:
    """An engine that is closed, whose core nobody uses."""
    engine = llamita.load(small_path, dtype="bfloat16").engine()
    engine.close()
    return engine


def test_calls_are_made_in_order_until_it_stops(engine: Engine) -> None:
    thread, calls = EngineThread(engine._core), list[int]()
    thread.start()
    last = [thread.call(lambda number=number: calls.append(number)) for number in range(9)][-1]
    last.result(300)
    thread.stop()
    assert calls == [*range(9)]
    with pytest.raises(AbortedError, match="was closed"):
        thread.call(lambda: 1).result(300)


def test_who_waits_for_a_cancelled_call_is_woken_where_the_thread_has_stopped(engine: Engine) -> None:
    """`concurrent.futures.wait` wants to be notified of a cancellation; an error cannot be set any more."""
    thread, held = EngineThread(engine._core), threading.Event()
    thread.start()
    thread.call(held.wait)
    thread._commands.put(None)
    later = thread.call(lambda: 1)  # after the last command
    later.cancel()
    held.set()
    assert not wait([later], timeout=300).not_done
    thread.join(300)


def test_a_process_without_the_thread_is_refused(engine: Engine) -> None:
    thread = EngineThread(engine._core)  # it is not started, as in a process that was forked
    thread._lock.acquire()
    with pytest.raises(ClosedError, match="forked"):
        thread.call(lambda: 1).result(300)
