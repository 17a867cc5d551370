"""An engine that a server has: how many texts it has taken on, and whether it is loaded."""

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from llamita.engine import garbage
from llamita.engine.engine import Engine
from llamita.engine.stats import EngineStats
from llamita.errors import ClosedError, LlamitaError, OverloadedError, UsageError

Result = TypeVar("Result")
LEAST_UNUSED = 0.5  # seconds, in which a request that has found its model is admitted
LOOK = 1.0  # seconds between looks whether an engine still lives


class ServedEngine:
    """The engine of a model and its adapters. The event loop alone counts, loads and unloads.

    name: the model's. load: makes the engine again; without it, it is never unloaded. in_flight: texts that are
    prepared, wait or are written. Raises UsageError for an engine that has no tokens to write with.
    """

    def __init__(self, name: str, engine: Engine, load: Callable[[], Engine] | None = None) -> None:
        self.name = name
        if engine.texts.context_length < 2:
            engine.close()
            raise UsageError(
                f"{name} could have {engine.texts.context_length} tokens in all, prompt and answer: allow more"
            )
        self.limits, self.context_length = engine.limits, engine.texts.context_length
        self.in_flight = 0
        self.is_draining = False
        self._engine: Engine | None = engine
        self._load, self._loading = load, None
        self._last_use = monotonic()
        self._earlier: EngineStats | None = None  # of the engines that were unloaded

    @property
    def engine(self) -> Engine:
        """The engine. Raises ClosedError while it is unloaded."""
        if self._engine is None:
            raise ClosedError(f"{self.name} has just been unloaded: ask again")
        return self._engine

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    @property
    def has_failed(self) -> bool:
        """Whether the engine has stopped although nobody asked it to."""
        return self._engine is not None and not (self._engine.is_alive or self.is_draining)

    @property
    def failure(self) -> BaseException | None:
        """What the engine has ended by, None where nothing is wrong."""
        return None if self._engine is None else self._engine.failure

    @property
    def stats(self) -> EngineStats:
        """The engine's counts; of what happened, with the engines before it."""
        now = EngineStats() if self._engine is None else self._engine.stats
        return now if self._earlier is None else now.after(self._earlier)

    @property
    def capacity(self) -> int:
        """How many texts may be written and wait at once."""
        return self.limits.max_num_requests

    @property
    def is_full(self) -> bool:
        """Whether it takes no more requests now."""
        return self.in_flight >= self.capacity

    def is_unused(self, seconds: float) -> bool:
        """Whether it could be unloaded, as nobody has asked it anything for so long."""
        is_free = self.is_loaded and not self.in_flight and not self.is_draining
        return is_free and self._load is not None and monotonic() - self._last_use >= max(seconds, LEAST_UNUSED)

    async def ready(self) -> None:
        """Load the engine if it is unloaded; all who ask meanwhile wait for one. Raises ClosedError if that fails."""
        self._last_use = monotonic()
        if self._engine is None:
            if self._loading is None:
                self._loading = asyncio.ensure_future(self._loaded())
                self._loading.add_done_callback(lambda done: done.exception())  # where all who asked have left
            await asyncio.shield(self._loading)  # it goes on when this client leaves

    async def unload(self) -> None:
        """Close the engine and give its memory back."""
        engines, self._earlier, self._engine = [self.engine], self.stats, None
        await asyncio.to_thread(_close_last, engines)

    def read_facts(self) -> None:
        """Read what receipts and fingerprints say of the weights, which takes a while, in a thread of its own.

        Of weights that several processes share only where a receipt is asked for, as no step is made meanwhile.
        """
        if self.engine.followers is not None:
            return
        threading.Thread(target=_read_facts, args=(self.engine,), name="llamita-facts", daemon=True).start()

    def admit(self, count: int) -> None:
        """Admit `count` texts. Raises OverloadedError and ClosedError, before any work is done for them."""
        if self.is_draining or not self.engine.is_alive:
            raise ClosedError("the server is shutting down or its engine has failed: ask another one, or later")
        if self.in_flight + count > self.capacity:
            raise self.overloaded()
        self.in_flight += count

    def overloaded(self) -> OverloadedError:
        """What a request is refused with that finds no room."""
        return OverloadedError(
            f"{self.in_flight} requests of {self.name} are written or wait already, at most {self.capacity} may: "
            "try again later"
        )

    def release(self, count: int) -> None:
        """Give back what `admit` took."""
        self.in_flight -= count
        self._last_use = monotonic()

    async def call(self, function: Callable[[], Result]) -> Result:
        """The result of a function that the engine's thread calls between two steps. Raises ClosedError."""
        engine = self.engine
        future = asyncio.wrap_future(engine.call(function))
        while not future.done():
            await asyncio.wait({future}, timeout=LOOK)
            if not future.done() and not engine.is_alive:
                future.cancel()
                raise ClosedError("the engine has stopped: ask later")
        return future.result()

    def close(self, *, patience: float | None = None) -> bool:
        """Stop the engine, and what it writes; returns whether nothing goes on. patience: see `Engine.close`."""
        has_stopped = self._engine is None or self._engine.close(0.0, patience=patience)
        return has_stopped and self._loading is None

    async def _loaded(self) -> None:
        assert self._load is not None
        try:
            self._engine = await asyncio.to_thread(self._load)
        except (LlamitaError, MemoryError) as error:
            raise ClosedError(f"{self.name} was unloaded and cannot be loaded again: {error}") from error
        finally:
            self._loading, self._last_use = None, monotonic()
        self.read_facts()


def _close_last(engines: list[Engine]) -> None:
    """Close the last engine of a list, which alone holds it, and free what it held: a model is full of circles."""
    engines.pop().close()
    garbage.collect()


def _read_facts(engine: Engine) -> None:
    for adapter in (None, *engine.texts.adapters):
        engine.facts(adapter)
