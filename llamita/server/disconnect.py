"""Clients that leave: their requests must not go on. Starlette cancels streams alone, not handlers that compute."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from llamita.server.errors import ClientGoneError

Result = TypeVar("Result")


async def disconnected(receive: Receive) -> None:
    """Wait until the client is gone; the body of its request has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled when the client leaves. Raises ClientGoneError then."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGoneError
        return worker.result()
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)
