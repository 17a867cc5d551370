"""A request that an engine writes for: one text or several, all given up together when the client leaves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from llamita.engine.handle import Delta, RequestHandle
from llamita.engine.terms import Terms
from llamita.generation.completion import Completion
from llamita.generation.text_options import TextOptions
from llamita.server.log import LOGGER
from llamita.server.metrics import Metrics
from llamita.server.models import ServedModel
from llamita.server.usage import timings


@dataclass(frozen=True)
class Item:
    """A text to write: the ids before it, the options, and what `Engine.submit` takes besides."""

    prompt: list[int]
    options: TextOptions
    reads_on: bool = True
    tools: tuple[str, ...] = ()


@dataclass(eq=False)
class Submission:
    """The handles of a request's texts, in the order in which they were asked for.

    left: texts whose end `deltas` has not reported yet.
    """

    model: ServedModel
    handles: list[RequestHandle]
    metrics: Metrics
    admitted: int
    has_receipts: bool = False
    is_closed: bool = field(default=False, init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.handles)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta | None], None]:
        """The number of a text and what it has become longer by; None where it is over. Raises its error."""
        if len(self.handles) == 1:
            async for delta in self.handles[0]:
                yield 0, delta
            self.left = 0
            yield 0, None
            return
        queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue()
        readers = [asyncio.ensure_future(_read(n, handle, queue)) for n, handle in enumerate(self.handles)]
        try:
            while self.left:
                number, delta = await queue.get()
                if isinstance(delta, BaseException):
                    raise delta
                self.left -= delta is None
                yield number, delta
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def completions(self) -> list[Completion]:
        """The whole texts. Raises the error of the first that failed."""
        return [await handle.completion() for handle in self.handles]

    def report(self, n: int) -> dict[str, Any]:
        """What a whole answer says of itself, n texts of each prompt: `timings`, and `receipts` if asked for."""
        found: dict[str, Any] = {"timings": timings(self.handles, n)}
        if self.has_receipts:
            found["receipts"] = [self.model.engine.receipt(handle).to_dict() for handle in self.handles]
        return found

    def last_report(self, n: int) -> dict[str, Any]:
        """The same for the end of a text in a stream: nothing, but after the last of them."""
        return {} if self.left else self.report(n)

    def close(self) -> None:
        """Stop what is still written, give back its place, and count it; once is enough."""
        if self.is_closed:
            return
        self.is_closed = True
        for handle in self.handles:
            if LOGGER.isEnabledFor(logging.DEBUG):
                LOGGER.debug("request %s: %s", handle.request_id, self.model.cache_use(handle))
            self.metrics.observe(self.model.name, handle)
            handle.abort()
        self.model.served.release(self.admitted)


async def _read(number: int, handle: RequestHandle, queue: asyncio.Queue) -> None:
    try:
        async for delta in handle:
            queue.put_nowait((number, delta))
        queue.put_nowait((number, None))
    except Exception as error:
        queue.put_nowait((number, error))


async def submit(
    model: ServedModel,
    count: int,
    prepare: Callable[[], Sequence[Item]],
    terms: Terms,
    metrics: Metrics,
    *,
    has_receipts: bool = False,
) -> Submission:
    """Let an engine write `count` texts; `prepare` makes them, in a thread, as tokenizing and grammars take a while.

    has_receipts: whether the answer has a receipt of each text. Raises OverloadedError before anything is prepared, and
    whatever `prepare` and `Engine.submit` raise.
    """
    model.served.admit(count)
    with ExitStack() as undo:
        undo.callback(model.served.release, count)
        work = asyncio.get_running_loop().run_in_executor(None, _submitted, model, prepare, terms, has_receipts)
        try:
            handles = await asyncio.shield(work)
        except asyncio.CancelledError:  # the client has left: the thread cannot be stopped, what it hands over can
            work.add_done_callback(_give_up)
            metrics.count_disconnected(model.name, count)
            raise
        undo.pop_all()
    return Submission(model, handles, metrics, count, has_receipts)


def _submitted(
    model: ServedModel, prepare: Callable[[], Sequence[Item]], terms: Terms, has_receipts: bool
) -> list[RequestHandle]:
    handles: list[RequestHandle] = []
    if has_receipts:
        model.engine.facts(model.adapter)  # this thread may wait for them, the event loop may not
    try:
        for item in prepare():
            handle = model.engine.submit(
                item.prompt,
                priority=terms.priority,
                cache_salt=terms.cache_salt,
                timeout=terms.timeout,
                queue_timeout=terms.queue_timeout,
                reads_on=item.reads_on,
                tools=item.tools,
                adapter=model.adapter,
                **item.options,
            )
            handles.append(handle)
    except BaseException:
        for handle in handles:
            handle.abort()
        raise
    return handles


def _give_up(done: "asyncio.Future[list[RequestHandle]]") -> None:
    if done.cancelled() or done.exception() is not None:
        return
    for handle in done.result():
        handle.abort()
