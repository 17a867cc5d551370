"""The worker process: `python -m llamita.bench.worker SOCKET` prepares a run and runs it on request."""

import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection

from llamita.bench.peak_memory import peak_bytes


def serve(pipe: Connection) -> None:
    """Prepare a run, then answer orders until the other side closes; an error is sent as a string."""
    try:
        name, arguments = pipe.recv()
        module, _, function = name.partition(":")
        job = getattr(import_module(module), function)(*arguments)
        while True:
            pipe.send(job() if pipe.recv() == "run" else peak_bytes(job))
    except (KeyboardInterrupt, EOFError, ConnectionResetError):
        return
    except ModuleNotFoundError as error:
        _tell(pipe, f"{sys.executable} lacks the module {error.name}, which this benchmark needs: install it there")
    except Exception as error:
        _tell(pipe, f"{type(error).__name__}: {error}")


def _tell(pipe: Connection, what: str) -> None:
    """Send the error, and wait until the other side closes, so that it can read it."""
    pipe.send(what)
    with suppress(KeyboardInterrupt, EOFError, ConnectionResetError):
        while True:
            pipe.recv()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
