"""The server of models from its first to its last second: its watch over the engines, its drain, its exit code."""

import asyncio
import os
import socket
import time
from collections.abc import Callable

from llamita.engine import garbage
from llamita.server.app import create_app, paths_of
from llamita.server.health import trouble
from llamita.server.listener import ListeningServer, config_of
from llamita.server.log import LOGGER
from llamita.server.models import ServedModel
from llamita.server.settings import ServerSettings
from llamita.server.state import ServerState

TICK = 0.25  # seconds between looks at the engines
CLOSING = 2.0  # seconds for what is still sent once the answers are over
PATIENCE = 2.0  # seconds for the step of an engine that is under way when it is stopped


class Server(ListeningServer):
    """The server of models, in one process. When it stops, answers go on to their end, for as long as the settings say.

    exit_code: of the process, 1 after an engine has died.
    """

    def __init__(self, models: list[ServedModel], settings: ServerSettings) -> None:
        self.app = app = create_app(models, settings)
        super().__init__(config_of(app, settings, CLOSING, app.state.arrivals))
        self.state: ServerState = app.state.server
        self.exit_code = 0
        self._drain: asyncio.Task[None] | None = None

    @property
    def paths(self) -> set[str]:
        """The paths that the server has."""
        return paths_of(self.app)

    def listen(self, listener: socket.socket, ready: Callable[[], object] = lambda: None) -> None:
        """Serve until it is stopped or an engine dies."""
        with garbage.frozen():
            super().listen(listener, ready)

    async def _listen(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        watcher = asyncio.ensure_future(self._watch())
        try:
            await super()._listen(listener, ready)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            if not await self._close_engines(PATIENCE if self._drain is None else 0.0):
                # A model that loads, or a step that compiles kernels, say: no thread can be stopped, a process can.
                LOGGER.warning("stopped in the middle of a step, or of loading a model")
                os._exit(self.exit_code)

    def stop(self) -> None:
        """Drain and stop; the second time, at once."""
        if self._drain is not None:
            LOGGER.warning("stopped at once")
            os._exit(130)
        self._drain = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        """Take no more requests, let answers end in time, abort the rest, and stop."""
        self.state.drain()
        until = time.monotonic() + self.state.settings.drain_timeout
        if self.state.in_flight:
            LOGGER.info("answers under way: %d; the next signal stops at once", self.state.in_flight)
        while self.state.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await self._close_engines(PATIENCE)
        self.should_exit = True

    async def _close_engines(self, patience: float) -> bool:
        """Stop all engines; returns whether nothing goes on in any of them."""
        engines = self.state.models.engines
        return all(await asyncio.gather(*(asyncio.to_thread(one.close, patience=patience) for one in engines)))

    async def _watch(self) -> None:
        """Note how late the event loop is, and unload unused models; stop when an engine is dead."""
        said: str | None = None
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            self.state.metrics.loop_lag.observe(max(0.0, time.monotonic() - before - TICK))
            found = trouble(self.state)
            if found is not None and found != said:
                LOGGER.error("%s", found)
            said = found
            await self._unload_unused()
            if any(engine.has_failed for engine in self.state.models.engines):
                self.exit_code = 1
                self.should_exit = True

    async def _unload_unused(self) -> None:
        """Unload the models that nobody has asked for a while, if the settings want it."""
        seconds = self.state.settings.unload_after
        for engine in self.state.models.engines:
            if seconds is not None and engine.is_unused(seconds):
                await engine.unload()
                LOGGER.info("%s was not asked for %g s: unloaded", engine.name, seconds)
