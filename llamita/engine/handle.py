"""The handle of a submitted request: its text as it is written, for threads and for asyncio, and a way to stop it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic

from llamita.generation.completion import Completion
from llamita.generation.logprobs import TokenLogprob
from llamita.generation.request import GenerationRequest


@dataclass(slots=True)  # not frozen: one is made for each token, in a third of the time
class Delta:
    """What was written since the last look: text, tokens, and their log-probabilities if they are recorded."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    def __add__(self, other: "Delta") -> "Delta":
        return Delta(self.text + other.text, self.token_ids + other.token_ids, self.logprobs + other.logprobs)


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
    at a time; a slow reader delays nobody, as what it has not read yet is joined into one delta.
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
        self._deltas: SimpleQueue[Delta | None] = SimpleQueue()  # None wakes who waits when it is over
        self._ended = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt."""
        return self.request.prompts[0] if self.request.prompts else []

    @property
    def is_over(self) -> bool:
        """Whether the request has ended; what it wrote last may be unread."""
        return self._completion is not None or self._error is not None

    def abort(self) -> None:
        """Stop the request; it writes no more. Does nothing where it is over."""
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
            delta = self._take(None if is_over else self._deltas.get())
            if delta is not None and delta.text:
                yield delta.text
            if delta is None and is_over:
                self._deltas.put(None)  # for another thread that reads too
                self._outcome()
                return

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
                waiter = self._waiter = asyncio.get_running_loop().create_future()
                if self._deltas.empty() and not self.is_over:  # what comes after this look finds the waiter
                    await waiter
                self._waiter = None

    # The engine's side

    def push(self, delta: Delta) -> asyncio.Future[None] | None:
        """Hand over what a step wrote; returns the future that a reader waits for, to be set in the reader's loop."""
        self._deltas.put(delta)
        return self._waiter

    def end(self, outcome: Completion | BaseException) -> asyncio.Future[None] | None:
        """Hand over how the request ended; the first outcome counts."""
        if not self.is_over:
            self.metrics.finished = monotonic()
            if isinstance(outcome, Completion):
                self._completion = outcome
            else:
                self._error = outcome
        self._ended.set()
        self._deltas.put(None)
        return self._waiter

    def _take(self, first: Delta | None = None) -> Delta | None:
        """All that is unread as one, after what was taken first; None if there is nothing."""
        while not self._deltas.empty():
            if (delta := self._deltas.get()) is not None:
                first = delta if first is None else first + delta
        return first

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion


def wake(futures: Sequence[asyncio.Future[None]]) -> None:
    """Let readers go on, with one call into each of their event loops."""
    for loop in {future.get_loop() for future in futures}:
        own = [future for future in futures if future.get_loop() is loop]
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set, own)


def _set(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
