"""The body of a request: JSON within bounds, read in time and as strictly as its schema says."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.server.errors import refused

Schema = TypeVar("Schema", bound=BaseModel)


class StrictModel(BaseModel):
    """A schema that takes no "3" for 3, no true for 1 and no NaN, and ignores fields that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())


class BodyLimit:
    """Middleware that refuses bodies of too many bytes, whether they say so before or not."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._refused()
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._refused()
            return message

        await self._app(scope, counted, send)

    def _refused(self) -> Exception:
        return refused(f"the body has more than {self._most} bytes: send less", code="body_too_large", status=413)


async def parsed_body(request: Request, schema: type[Schema], *, timeout: float) -> Schema:
    """The body as its schema wants it. Raises ValidationError, RequestError and ClientDisconnect."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send other types without asking the browser's leave
        raise refused("the content-type must be application/json", code="unsupported_media_type", status=415)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise refused("the body must not be compressed", code="unsupported_media_type", status=415)
    try:
        async with asyncio.timeout(timeout):
            raw = await request.body()
    except TimeoutError:
        raise refused(f"the body did not arrive within {timeout:g} s", code="request_timeout", status=408) from None
    return schema.model_validate_json(raw)
