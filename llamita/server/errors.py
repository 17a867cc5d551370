"""What went wrong, as an HTTP status and the fields of an error object; each dialect writes its own object of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llamita import errors
from llamita.checks import shortened
from llamita.server.other_paths import OURS

MOST_MESSAGE = 600  # characters
INVALID_HTTP = "invalid_http"  # the code of a failure after which the connection ends
# A part of a location that is a field's name, not that of a type that pydantic tried.
_FIELD = re.compile(r"(?!(?:str|int|bool|float|literal)$)[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Failure:
    """A failed request: its HTTP status, and OpenAI's words for it.

    type: such as invalid_request_error. code: what exactly, for programs. param: the field that is wrong.
    is_final: whether the same request would fail again, so that no client should repeat it.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    is_final: bool = True


class RequestError(errors.LlamitaError):
    """A request that is refused, with all that is to be said of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ClientGoneError(Exception):
    """The client has left before its answer was there."""


class Kind(NamedTuple):
    """How a class of errors is answered."""

    status: int
    type: str
    code: str | None = None
    is_final: bool = True


# The first class that an error is of counts.
KINDS: Mapping[type[BaseException], Kind] = {
    errors.QueueTimeoutError: Kind(503, "server_error", "queue_timeout", is_final=False),
    errors.OverloadedError: Kind(429, "rate_limit_error", "queue_full", is_final=False),
    errors.ClosedError: Kind(503, "server_error", "unavailable", is_final=False),
    errors.AbortedError: Kind(503, "server_error", "aborted", is_final=False),
    errors.OverdueError: Kind(408, "timeout_error", "request_timeout"),
    errors.UsageError: Kind(400, "invalid_request_error"),
    errors.UnsupportedError: Kind(400, "invalid_request_error", "unsupported"),
    errors.NotFiniteError: Kind(500, "server_error", "not_finite"),
    torch.OutOfMemoryError: Kind(503, "server_error", "out_of_memory", is_final=False),
    MemoryError: Kind(503, "server_error", "out_of_memory", is_final=False),
}
SAID = (errors.LlamitaError,)  # whose messages are for people; those of others stay in the log


def failure_of(error: BaseException, request_id: str = "", *, path: str = "") -> Failure:
    """What an error means for the client. Of errors that were not foreseen it learns the request's id alone.

    path: that was asked for.
    """
    if isinstance(error, RequestError):
        return error.failure
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _of_path(error, path)
    kind = KINDS[MemoryError] if _lacks_thread(error) else None
    kind = kind or next((kind for known, kind in KINDS.items() if isinstance(error, known)), None)
    if kind is None:
        return Failure(500, f"the server failed at this request, its log says more of {request_id}", "server_error")
    text = shortened(error, MOST_MESSAGE) if isinstance(error, SAID) else "the server is out of memory: try again"
    retry_after = getattr(error, "retry_after", None) or (1 if kind.status == 503 else None)
    return Failure(kind.status, text, kind.type, kind.code, retry_after=retry_after, is_final=kind.is_final)


def is_unforeseen(error: BaseException) -> bool:
    """Whether an error is a defect of llamita, whose traceback the log should have."""
    known = (RequestError, ValidationError, HTTPException, ClientDisconnect, ClientGoneError, *KINDS)
    return not (isinstance(error, known) or _lacks_thread(error))


def _lacks_thread(error: BaseException) -> bool:
    """Whether the system gave no further thread, as there is too little memory or there are too many."""
    return isinstance(error, RuntimeError) and "start new thread" in str(error)


def refused(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> RequestError:
    """The error to raise for a request that is wrong."""
    return RequestError(Failure(status, message, code=code, param=param))


def _invalid(error: ValidationError) -> Failure:
    """The first thing that pydantic found wrong, without the value, which may be long or private."""
    found: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the ways to read a field, the one that went furthest.
    first = max(found, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _FIELD.fullmatch(part))
    message = shortened(str(first["msg"]).removeprefix("Value error, "), MOST_MESSAGE)
    if first["type"] == "json_invalid":
        return Failure(400, f"the body is no JSON: {message}", code="invalid_json")
    text = f"{shortened(where, 100)}: {message}" if where else message
    return Failure(400, text, code="invalid_value", param=shortened(where, 100) or None)


def _of_path(error: HTTPException, path: str) -> Failure:
    if error.status_code == 404 and (own := OURS.get(path)):
        return Failure(404, f"there is no {path} here: {own} does that, /docs lists all paths")
    messages = {
        404: "there is no such path: /docs lists those there are",
        405: "this path does not take that method: /docs lists what it takes",
    }
    return Failure(error.status_code, messages.get(error.status_code, shortened(error.detail, MOST_MESSAGE)))
