"""Process groups by fork: torch is imported once, and each process costs milliseconds rather than seconds."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from llamita.parallel.mesh import processes

Task = Callable[[DeviceMesh | None], Any]
LONGEST = 600  # seconds that a process may take


def on(count: int, task: Task) -> list[Any]:
    """What a task returns on each of some ranks. Raises RuntimeError with the tracebacks of all that failed."""
    answers, errors = [], []
    for rank, found in enumerate(start(count, lambda: _joined(task))):
        try:
            answers.append(answer(*found))
        except RuntimeError as error:  # often because another one has died
            errors.append(f"rank {rank}: {error}")
    if errors:
        raise RuntimeError("\n".join(errors))
    return answers


def start(count: int, work: Callable[[], Any]) -> list[tuple[Any, Connection]]:
    """Fork processes with the environment of torchrun; a process and the pipe of its answer for each."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    found = []
    for rank in range(count):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(work, rank, count, port, sender))
        process.start()
        sender.close()
        found.append((process, receiver))
    return found


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def join_environment(rank: int, count: int, port: int) -> None:
    """Set the variables that torchrun sets."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")


def _joined(task: Task) -> Any:
    with processes() as mesh:
        return task(mesh)


def _run(work: Callable[[], Any], rank: int, count: int, port: int, sender: Connection) -> None:
    join_environment(rank, count, port)
    try:
        answer = work(), ""
    except BaseException:
        answer = None, traceback.format_exc()
    sender.send_bytes(pickle.dumps(answer))  # not `send`, which shares a tensor's memory with a process that is gone
    sender.close()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way, after all is done


def answer(process: Any, receiver: Connection) -> Any:
    """What a process of `start` returned. Raises RuntimeError with its traceback where it failed."""
    if not receiver.poll(LONGEST):
        process.kill()
        raise RuntimeError("a process did not answer")
    try:
        value, error = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise RuntimeError(f"a process ended with {process.exitcode} and said nothing: see stderr") from None
    process.join()
    if error:
        raise RuntimeError(error)
    return value
