"""The handle of a submitted request: its text as it is written, for threads and for asyncio, and a way to stop it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from llamita.generation.completion import Completion
from llamita.generation.logprobs import TokenLogprob
from llamita.generation.request import GenerationRequest
from llamita.generation.sequence import Sequence as TextSequence

Waiter = asyncio.Future[None] | threading.Event  # of who waits for more, in an event loop or in a thread


@dataclass(slots=True)  # not frozen: one is made for each token of a stream, in a third of the time
class Delta:
    """What was written since the last look: text, tokens, and their log-probabilities if they are recorded."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass
class RequestMetrics:
    """When what happened to a request, in seconds of `time.monotonic`, and how much of its prompt was cached.

    cached_instead: the token that the cache had after the cached part, instead of the prompt's own. draft_tokens,
    accepted_tokens: that were proposed, and how many of these were written.
    """

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    cached_tokens: int = 0
    cached_instead: int | None = None
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


class RequestHandle:
    """One submitted request. Iterate over it (`for piece in handle`, `async for delta in handle`), or ask for `result`.

    Both raise what ended the request early: AbortedError after `abort`, or the error of this very request. One reader
    at a time; a slow reader delays nobody, as a delta is all that it has not read yet.
    """

    def __init__(
        self,
        request_id: str,
        request: GenerationRequest,
        abort: Callable[["RequestHandle"], None],
        adapter: str | None = None,
    ) -> None:
        self.request_id, self.request, self.adapter = request_id, request, adapter
        self.metrics = RequestMetrics(monotonic())
        self._abort = abort
        self._sequence: TextSequence | None = None
        self._written = self._read = (0, 0)  # how many of its tokens, and of its text's characters
        self._reading = threading.Lock()
        self._waiters: list[Waiter] = []
        self._ended = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt."""
        return self.request.prompts[0] if self.request.prompts else []

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprob] | None:
        """Those of the prompt's tokens from the second on, if they are asked for, before the first token is written."""
        return None if self._sequence is None else self._sequence.prompt_logprobs

    @property
    def is_over(self) -> bool:
        """Whether the request has ended; what it wrote last may be unread."""
        return self._completion is not None or self._error is not None

    def abort(self) -> None:
        """Stop the request; it writes no more. Does nothing where it is over."""
        if not self.is_over:  # else the engine's thread would be woken for nothing
            self._abort(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole text. Raises TimeoutError after `timeout` seconds; the request goes on."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"request {self.request_id} is not over after {timeout} s: wait longer, or abort it")
        return self._outcome()

    async def completion(self) -> Completion:
        """Wait for the whole text."""
        async for _ in self:
            pass
        return self._outcome()

    def __iter__(self) -> Iterator[str]:
        """The pieces of the text as they are written."""
        while True:
            is_over = self.is_over  # then no more comes
            if (delta := self._take()) is not None:
                if delta.text:
                    yield delta.text
            elif is_over:
                self._outcome()
                return
            else:
                waiter = threading.Event()
                if self._must_wait(waiter):
                    waiter.wait()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """What is written, step by step."""
        while True:
            is_over = self.is_over
            if (delta := self._take()) is not None:
                yield delta
            elif is_over:
                self._outcome()
                return
            else:
                waiter = asyncio.get_running_loop().create_future()
                if self._must_wait(waiter):
                    await waiter

    def _take(self) -> Delta | None:
        """What is unread; None if there is nothing."""
        with self._reading:
            (first, shown), (end, length) = self._read, self._written
            if first == end:
                return None
            self._read = end, length
        assert self._sequence is not None
        text, token_ids, noted = self._sequence.text, self._sequence.token_ids, self._sequence.logprobs
        return Delta(text[shown:length], tuple(token_ids[first:end]), () if noted is None else tuple(noted[first:end]))

    def _must_wait(self, waiter: Waiter) -> bool:
        """Whether there is nothing to read: what comes after this look finds the waiter."""
        self._waiters.append(waiter)
        return self._read == self._written and not self.is_over

    # The engine's side

    def begin(self, sequence: TextSequence) -> None:
        """Let what will be written be read from this sequence."""
        self._sequence = sequence

    def publish(self) -> list[Waiter]:
        """Let what the sequence has by now be read; returns who waits for it, for `wake`."""
        assert self._sequence is not None
        self._written = len(self._sequence.token_ids), len(self._sequence.text)
        if not self._waiters:
            return []
        waiters, self._waiters = self._waiters, []
        return waiters

    def end(self, outcome: Completion | BaseException) -> list[Waiter]:
        """Hand over how the request ended; the first outcome counts. Returns who waits for it."""
        if not self.is_over:
            self.metrics.finished = monotonic()
            if isinstance(outcome, Completion):
                self._completion = outcome
            else:
                self._error = outcome
        self._ended.set()
        waiters, self._waiters = self._waiters, []
        return waiters

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion


def wake(waiters: Sequence[Waiter]) -> None:
    """Let readers go on, with one call into each of their event loops."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, threading.Event):
            waiter.set()
        else:
            loops.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, own in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set, own)


def _set(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
