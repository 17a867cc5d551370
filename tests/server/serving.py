"""A server for tests: behind a real uvicorn on a free port of this machine, in a thread, so that a test sees inside."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.llm import LLM
from llamita.server.listener import bind
from llamita.server.models import ServedModel, served_models
from llamita.server.run import Server
from llamita.server.settings import ServerSettings

PATIENCE = 60.0  # seconds after which a test gives up; none measures with it
JSON = {"content-type": "application/json"}


@dataclass
class Running:
    """A running server and ways to ask it."""

    server: Server
    address: str
    loop: asyncio.AbstractEventLoop
    client: httpx.Client

    @property
    def model(self) -> ServedModel:
        """Its first model."""
        return next(iter(self.server.state.models))

    @property
    def in_flight(self) -> int:
        """Texts that are prepared, wait or are written."""
        return self.server.state.in_flight

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET."""
        return self.client.get(path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST a body, as JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={**JSON, **headers})

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        families = self.server.state.metrics.registry.collect()
        samples = [one for family in families for one in family.samples if one.name == f"llamita:{name}"]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


@contextmanager
def serving(
    llm: LLM, *, limits: EngineLimits | None = None, load: Callable[[], Engine] | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of one model, and its adapters, for a while; what a receipt says of them is known."""
    engine = llm.engine(limits)
    for adapter in (None, *llm.adapters):
        engine.facts(adapter)
    server = Server(served_models("cria", engine, load), ServerSettings(**settings))
    listener = bind("127.0.0.1", 0)
    ready, loops = threading.Event(), []

    def greet() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    thread = threading.Thread(target=server.listen, args=(listener, greet), name="test-server")
    thread.start()
    assert ready.wait(PATIENCE)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = httpx.Client(base_url=address, timeout=PATIENCE, verify=False, trust_env=False)
    running = Running(server, address, loops[0], client)
    try:
        with client:
            yield running
    finally:
        if thread.is_alive():
            running.loop.call_soon_threadsafe(halt, server)
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()


def halt(server: Server) -> None:
    """Stop a server without waiting for answers."""
    server.state.drain()
    server.should_exit = True


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait until something is so, as long as it takes within reason."""
    until = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.01)


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat request, greedy unless told otherwise."""
    return {"model": "cria", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def raw_request(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """The bytes of a POST."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"content-length: {len(content)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        yield connection
