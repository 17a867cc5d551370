"""One process that decides and others that do the same: commands as plain data, next to the group's collectives.

They go over sockets rather than by a collective: a process may wait for the next command for days, and learns at once
that the first one has ended.
"""

import json
import os
import secrets
import select
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d

from llamita.parallel import mesh

WAIT = 60.0  # seconds that a process may keep the others waiting in a pass
END = "end"
SETTLING = 0.2  # seconds in which the sockets of a process that has died are closed


class LostProcess(BaseException):
    """A process has ended, or does not do its part. No Exception, as no handler of a single request may take it."""


class Followers:
    """The other processes, as the first one sees them. connections: by rank. wait: seconds for their part of a pass."""

    def __init__(self, connections: Mapping[int, socket.socket], *, wait: float = WAIT) -> None:
        self._connections, self._wait = dict(connections), wait
        self._sent, self._taken = 0, dict.fromkeys(connections, 0)
        self._ended: set[int] = set()
        for connection in connections.values():
            connection.settimeout(wait)  # of one that is full, as its process reads nothing
        _set_timeout(wait)

    def tell(self, name: str, *values: Any) -> None:
        """Let the others do something; the values are numbers, texts, lists and arrays. Raises LostProcess."""
        line = json.dumps([name, *values], separators=(",", ":"), default=list).encode() + b"\n"
        self._sent += 1
        try:
            for connection in self._connections.values():
                connection.sendall(line)
        except OSError as error:
            raise self.lost(error) from error
        self._look()
        if self._ended:
            raise self.lost(ConnectionError())

    def lost(self, error: BaseException) -> LostProcess:
        """What to raise for an error in what all do together: which process it comes from, as far as is known."""
        time.sleep(SETTLING)
        self._look()
        late = [rank for rank, taken in self._taken.items() if taken < self._sent and rank not in self._ended]
        if self._ended:
            return LostProcess(f"{_named(self._ended)} ended in the middle: see what it said, and start all again")
        if late:
            return LostProcess(f"{_named(late)} took up no step for {self._wait:g} s: start all again")
        return LostProcess(f"a pass of all processes failed: {error}")

    def close(self) -> None:
        """Let the others end."""
        for connection in self._connections.values():
            with connection:
                try:
                    connection.sendall(json.dumps([END]).encode() + b"\n")
                except OSError:
                    continue  # it has ended already

    def _look(self) -> None:
        """Count the commands that each process has taken up, and note those that have ended."""
        of = {connection: rank for rank, connection in self._connections.items() if rank not in self._ended}
        while of and (found := select.select(list(of), [], [], 0)[0]):  # until nothing is left: an end comes last
            for connection in found:
                try:
                    taken = len(connection.recv(1 << 16))
                except OSError:
                    taken = 0
                self._taken[of[connection]] += taken
                if not taken:
                    self._ended.add(of.pop(connection))


class Commands:
    """What the first process tells this one: an iterator of (name, values). Raises LostProcess where that one ends."""

    def __init__(self, connection: socket.socket, *, wait: float = WAIT) -> None:
        self._connection = connection
        _set_timeout(wait)

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        try:
            with self._connection, self._connection.makefile("rb") as lines:
                for line in lines:
                    name, *values = json.loads(line)
                    if name == END:
                        return
                    with suppress(BrokenPipeError):  # it may have said all, and closed: its lines have its end
                        self._connection.sendall(b".")  # taken up
                    yield name, values
        except OSError as error:
            raise LostProcess("process 0 has ended in the middle: see what it said") from error
        raise LostProcess("process 0 has ended without a word: see what it said")


def lead(*, wait: float = WAIT) -> Followers:
    """The other processes of the group, from its first one; they call `follow` meanwhile. Raises LostProcess."""
    host, token = os.environ["MASTER_ADDR"], secrets.token_hex(16)
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    found: dict[int, socket.socket] = {}
    with socket.create_server((host, 0), family=family) as server:
        mesh.from_first(lambda: (server.getsockname()[1], token))
        server.settimeout(wait)
        while len(found) < mesh.world_size() - 1:
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                missing = set(range(1, mesh.world_size())) - found.keys()
                raise LostProcess(f"{_named(missing)} did not come within {wait:g} s: start all again") from error
            if (rank := _known(connection, token, wait)) is not None:
                found[rank] = connection
    return Followers(found, wait=wait)


def follow(*, wait: float = WAIT) -> Commands:
    """The commands of the group's first process, which calls `lead` meanwhile."""
    port, token = mesh.from_first(lambda: (0, ""))
    connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=wait)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(f"{token} {mesh.rank()}\n".encode())
    return Commands(connection, wait=wait)


def _known(connection: socket.socket, token: str, wait: float) -> int | None:
    """The rank of a process that has the token; None for a stranger, who is sent away."""
    connection.settimeout(wait)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        said = connection.makefile("rb").readline(80).decode(errors="replace").split()
    except OSError:
        said = []
    if len(said) == 2 and secrets.compare_digest(said[0].encode(), token.encode()):
        return int(said[1])
    connection.close()
    return None


def _set_timeout(seconds: float) -> None:
    # Private to torch, which has no other way to change it; loading, before, may take longer than a pass.
    distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def _named(ranks: set[int] | list[int]) -> str:
    numbers = ", ".join(map(str, sorted(ranks)))
    return f"process {numbers}" if len(ranks) == 1 else f"processes {numbers}"
