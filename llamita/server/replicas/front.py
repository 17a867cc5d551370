"""The server in front of replicas: the same socket, signals and bounds as one without them, and no model."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from llamita.server.run import BACKLOG, config_of
from llamita.server.settings import ServerSettings


class FrontServer(uvicorn.Server):
    """uvicorn that stops by a signal once its answers are over, or after drain_timeout; by a second one at once."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(config_of(app, settings, settings.drain_timeout))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `listen`, as what comes after it must still be stopped."""
        yield

    def listen(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        """Serve until a signal comes; `ready` is called once."""
        listener.listen(BACKLOG)
        asyncio.run(self._listen(listener, ready))

    def stop(self) -> None:
        """Let answers end and stop; the second time, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _listen(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
        serving = asyncio.ensure_future(self.serve([listener]))
        while not (self.started or serving.done()):
            await asyncio.sleep(0.005)
        ready()
        await serving
