"""A handle gives what was written to threads and to event loops, and as one what nobody has read yet."""

import asyncio
import threading
from typing import Any

import pytest

from llamita.engine.handle import Delta, RequestHandle, wake
from llamita.generation.completion import Completion
from llamita.generation.sequence import Sequence

WHOLE = Completion(text="ab", token_ids=[1, 2], prompt_token_ids=[0], finish_reason="stop")


class Writer:
    """A handle, and the sequence that the engine writes for it."""

    def __init__(self) -> None:
        request: Any = None
        self.handle, self.sequence = RequestHandle("id", request, lambda handle: None), Sequence(limit=9)
        self.handle.begin(self.sequence)

    def write(self, text: str, token: int) -> None:
        """Write a token, whose text this is."""
        self.sequence.text += text
        self.sequence.push(token)
        wake(self.handle.publish())

    def end(self, outcome: Completion | BaseException) -> None:
        """End the request."""
        wake(self.handle.end(outcome))


def test_what_is_unread_is_one_delta() -> None:
    writer = Writer()
    one = writer.handle
    writer.write("a", 1)
    writer.write("b", 2)
    writer.end(WHOLE)
    assert list(one) == ["ab"]
    assert one.result(0) is WHOLE
    writer.end(ValueError("too late"))
    assert one.result(0) is WHOLE


def test_two_threads_read_one_handle_to_its_end() -> None:
    writer, ended = Writer(), list[str]()
    readers = [threading.Thread(target=lambda: ended.append("".join(writer.handle)), daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    writer.write("a", 1)
    writer.end(WHOLE)
    for reader in readers:
        reader.join(300)
    assert sorted(ended) == ["", "a"]


def test_a_result_may_take_too_long() -> None:
    with pytest.raises(TimeoutError, match="request id is not over"):
        Writer().handle.result(0.01)


def test_a_reader_in_an_event_loop_is_woken_by_another_thread() -> None:
    writer = Writer()

    def write() -> None:
        for text, token in (("a", 1), ("", 2), ("b", 3)):
            writer.write(text, token)
        writer.end(ValueError("broken"))

    async def read() -> list[Delta]:
        thread, deltas = threading.Thread(target=write), list[Delta]()
        asyncio.get_running_loop().call_later(0.01, thread.start)
        with pytest.raises(ValueError, match="broken"):
            async for delta in writer.handle:
                deltas.append(delta)
        thread.join()
        return deltas

    deltas = asyncio.run(read())
    assert "".join(delta.text for delta in deltas) == "ab"
    assert [token for delta in deltas for token in delta.token_ids] == [1, 2, 3]


def test_a_closed_loop_is_left_alone() -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    wake([future])
    assert not future.done()


def test_an_abort_of_what_is_over_asks_the_engine_for_nothing() -> None:
    aborted = list[RequestHandle]()
    request: Any = None
    one = RequestHandle("id", request, aborted.append)
    one.abort()
    assert aborted == [one]
    one.end(WHOLE)
    one.abort()
    assert aborted == [one]
