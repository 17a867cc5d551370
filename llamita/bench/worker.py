"""What a benchmark's process does: `python -m llamita.bench.worker SOCKET` prepares a job and runs it when asked."""

import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection

from llamita.bench.peak_memory import peak_bytes


def serve(pipe: Connection) -> None:
    """Read what to prepare, then answer orders until the other side hangs up; what goes wrong is told in a string."""
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
    """Say what went wrong, and stay until the other side has read it: a process that was gone could not be asked."""
    pipe.send(what)
    with suppress(KeyboardInterrupt, EOFError, ConnectionResetError):
        while True:
            pipe.recv()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
