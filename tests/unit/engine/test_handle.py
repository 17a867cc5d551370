"""A handle gives what was pushed to threads and to event loops, and joins what nobody has read yet."""

import asyncio
import threading
from typing import Any

import pytest

from llamita.engine.handle import Delta, RequestHandle, wake
from llamita.generation.completion import Completion

WHOLE = Completion(text="ab", token_ids=[1, 2], prompt_token_ids=[0], finish_reason="stop")


def handle() -> RequestHandle:
    """A handle that nobody writes to yet."""
    request: Any = None
    return RequestHandle("id", request, lambda handle: None)


def test_what_is_unread_is_joined() -> None:
    one = handle()
    one.push(Delta("a", (1,)))
    one.push(Delta("b", (2,)))
    one.end(WHOLE)
    assert list(one) == ["ab"]
    assert one.result(0) is WHOLE
    one.end(ValueError("too late"))
    assert one.result(0) is WHOLE


def test_two_threads_read_one_handle_to_its_end() -> None:
    one, ended = handle(), list[str]()
    readers = [threading.Thread(target=lambda: ended.append("".join(one)), daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    one.push(Delta("a", (1,)))
    one.end(WHOLE)
    for reader in readers:
        reader.join(300)
    assert sorted(ended) == ["", "a"]


def test_a_result_may_take_too_long() -> None:
    with pytest.raises(TimeoutError, match="request id is not over"):
        handle().result(0.01)


def test_a_reader_in_an_event_loop_is_woken_by_another_thread() -> None:
    one = handle()

    def write() -> None:
        for delta in (Delta("a", (1,)), Delta("", (2,)), Delta("b", (3,))):
            waiter = one.push(delta)
            wake([] if waiter is None else [waiter])
        waiter = one.end(ValueError("broken"))
        wake([] if waiter is None else [waiter])

    async def read() -> Delta:
        thread = threading.Thread(target=write)
        total = Delta()
        asyncio.get_running_loop().call_later(0.01, thread.start)
        with pytest.raises(ValueError, match="broken"):
            async for delta in one:
                total += delta
        thread.join()
        return total

    assert asyncio.run(read()) == Delta("ab", (1, 2, 3))


def test_a_closed_loop_is_left_alone() -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    wake([future])
    assert not future.done()
