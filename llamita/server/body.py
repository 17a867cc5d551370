"""The body of a request: JSON within bounds, read in time and as strictly as its schema says."""

import asyncio
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.checks import quoted
from llamita.server.errors import INVALID_HTTP, refused

FRAMES = {b"content-length", b"transfer-encoding"}  # each says where a body ends
Schema = TypeVar("Schema", bound=BaseModel)


class StrictModel(BaseModel):
    """A schema that takes no "3" for 3, no true for 1 and no NaN, and ignores fields that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())


def bounded(most: int, *, least: int = 0) -> Any:
    """The field of a list of `least` to `most` entries. Of its errors the first is reported: a million take seconds."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def at_most(most: int) -> Callable[[Any], Any]:
    """What refuses an object of more entries before they are looked at, so that not each is an error of its own."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"it has {len(value)} entries, at most {most} are taken")
        return value

    return check


class BodyLimit:
    """Middleware that refuses bodies of too many bytes, whether they say so before or not."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if {name for name, _ in scope["headers"]} >= FRAMES:
            why = "the body has a content-length and is chunked, of which proxies read either: send one of the two"
            raise refused(why, code=INVALID_HTTP)
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
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise refused("the body must not be compressed", code="unsupported_media_type", status=415)
    try:
        async with asyncio.timeout(timeout):
            raw = await request.body()
    except TimeoutError:
        raise refused(f"the body did not arrive within {timeout:g} s", code="request_timeout", status=408) from None
    found = schema.model_validate_json(raw)
    check_json(raw)
    return found


def check_json(raw: bytes) -> None:
    """Raise RequestError where valid JSON is ambiguous or beyond numbers: a key twice in one object, NaN, or infinity.

    Of two values readers take the first or the last, so that what a proxy has checked need not be what is answered.
    """
    json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)


def _unique(pairs: Iterable[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise refused(f"the body has {quoted(name)} twice in one object: send it once", code="invalid_json")
        seen.add(name)


def _no_number(text: str) -> NoReturn:
    raise refused(f"the body has {text}, which is no number in JSON", code="invalid_json")


def _finite(text: str) -> None:
    if math.isinf(float(text)):
        _no_number(text)
