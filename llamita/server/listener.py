"""A server that listens at a port until a signal comes: its socket, its configuration, its signals."""

import asyncio
import contextlib
import errno
import math
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from llamita.checks import quoted
from llamita.errors import AccessError, UsageError
from llamita.server.app import ERROR_BODIES
from llamita.server.connection import protocol_of
from llamita.server.overload import Arrivals
from llamita.server.settings import ServerSettings

PORTS = 100  # that are tried where none was asked for
BACKLOG = 2048  # connections that wait to be accepted


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
            raise UsageError(
                f"{quoted(host)} is no address of this machine ({error.strerror}): take 127.0.0.1"
            ) from None
        except UnicodeError:
            raise UsageError(f"{quoted(host)} is no address and no name of a machine: take 127.0.0.1") from None
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


class ListeningServer(uvicorn.Server):
    """uvicorn over a socket that is bound already, and with our own way to stop."""

    def stop(self) -> None:
        """What a signal does: let answers end, and stop; the second time, at once."""
        raise NotImplementedError

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `listen`: what comes after the server must still be stopped."""
        yield

    def listen(self, listener: socket.socket, ready: Callable[[], object] = lambda: None) -> None:
        """Serve until it is stopped; `ready` is called once.

        Raises UsageError where another program listens at the port by now.
        """
        try:
            listener.listen(BACKLOG)
        except OSError:
            raise UsageError(
                f"port {listener.getsockname()[1]} is in use by now: take another one with --port"
            ) from None
        asyncio.run(self._listen(listener, ready))

    async def _listen(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
        serving = asyncio.ensure_future(self.serve([listener]))
        while not (self.started or serving.done()):
            await asyncio.sleep(0.005)
        if self.started:
            ready()
        await serving
