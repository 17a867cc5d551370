"""A server from its first to its last second: its socket, its signals, its drain, and the end of a dead engine."""

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from llamita.engine import garbage
from llamita.errors import AccessError, UsageError
from llamita.server.app import ERROR_BODIES, create_app, paths_of
from llamita.server.connection import protocol_of
from llamita.server.health import trouble
from llamita.server.models import ServedModel
from llamita.server.overload import Arrivals
from llamita.server.settings import ServerSettings
from llamita.server.state import LOGGER, ServerState

TICK = 0.25  # seconds between looks at the engines
PORTS = 100  # that are tried where none was asked for
BACKLOG = 2048  # connections that wait to be accepted
CLOSING = 2.0  # seconds for what is still sent once the answers are over
PATIENCE = 2.0  # seconds for the step of an engine that is under way when it is stopped


def bind(host: str, port: int, *, tries: int = 1) -> socket.socket:
    """A socket at the first port that is free; it does not listen yet. Raises UsageError and AccessError."""
    for number in range(port, min(port + tries, 65536)):
        try:
            return _bound(host, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EACCES:
                raise AccessError(f"port {number} needs rights that this user has not: take one above 1023") from None
            raise UsageError(f"{host} is no address of this machine ({error.strerror}): take 127.0.0.1") from None
    where = f"port {port} is" if tries == 1 else f"ports {port} to {port + tries - 1} are"
    raise UsageError(f"{where} in use: take another one with --port")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart does not wait for old connections
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def config_of(
    app: ASGIApp, settings: ServerSettings, closing: float, arrivals: Arrivals | None = None
) -> uvicorn.Config:
    """uvicorn's configuration. closing: seconds that answers may take when it stops. arrivals: for the connections."""
    return uvicorn.Config(
        app,
        # Of h11, which takes 64 KiB of headers; httptools takes any size.
        http=protocol_of(settings, ERROR_BODIES, arrivals),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=None if closing == math.inf else int(closing),
    )


class Server(uvicorn.Server):
    """uvicorn with our own way to stop: answers go on to their end, for as long as the settings say.

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

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `listen`."""
        yield

    def listen(self, listener: socket.socket, ready: Callable[[], object] | None = None) -> int:
        """Serve until a signal comes or an engine dies; `ready` is called once. Returns the exit code.

        Raises UsageError where another program listens at the port by now.
        """
        try:
            listener.listen(BACKLOG)
        except OSError:
            raise UsageError(
                f"port {listener.getsockname()[1]} is in use by now: take another one with --port"
            ) from None
        with garbage.frozen():
            asyncio.run(self._listen(listener, ready))
        return self.exit_code

    async def _listen(self, listener: socket.socket, ready: Callable[[], object] | None) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
        watcher = asyncio.ensure_future(self._watch(ready))
        try:
            await self.serve([listener])
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

    async def _watch(self, ready: Callable[[], object] | None) -> None:
        """Say when the server is ready; note how late the event loop is; stop when an engine is dead."""
        while not self.started:
            await asyncio.sleep(0.005)
        if ready is not None:
            ready()
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
