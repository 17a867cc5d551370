"""The worker process: `python -m llamita.bench.worker SOCKET` prepares a run and runs it on request."""

import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection

from llamita.bench.peak_memory import peak_bytes

LEFT = (KeyboardInterrupt, EOFError, ConnectionError)  # the bench has ended, or its terminal has said so


def serve(pipe: Connection) -> None:
    """Prepare a run, then run it on each order until the other side closes. Errors are sent as strings."""
    try:
        name, arguments = pipe.recv()
        module, _, function = name.partition(":")
        run = getattr(import_module(module), function)(*arguments)
        while True:
            pipe.send(run() if pipe.recv() == "run" else peak_bytes(run))
    except LEFT:
        return
    except ModuleNotFoundError as error:
        _send_error(
            pipe, f"{sys.executable} lacks the module {error.name}, which this benchmark needs: install it there"
        )
    except Exception as error:
        _send_error(pipe, f"{type(error).__name__}: {error}")


def _send_error(pipe: Connection, message: str) -> None:
    """Send an error and wait until the other side closes, so that it can read the error."""
    with suppress(*LEFT):
        pipe.send(message)
        while True:
            pipe.recv()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
