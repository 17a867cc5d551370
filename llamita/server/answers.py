"""The answer to a request, in any dialect: whole or streamed, given up when the client leaves."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.generation.completion import Completion
from llamita.server.disconnect import unless_disconnected
from llamita.server.errors import Failure, failure_of, is_unforeseen
from llamita.server.log import LOGGER
from llamita.server.models import ServedModel
from llamita.server.sampling_request import SamplingRequest
from llamita.server.sse import EventStream
from llamita.server.state import state_of, terms_of
from llamita.server.submission import Item, Submission, submit


class Answer(Protocol):
    """What a handler makes of a submission."""

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        ...

    def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, as it is written."""
        ...

    def failure_events(self, failure: Failure) -> bytes:
        """How a stream ends that fails."""
        ...


async def submitted(
    request: Request, asked: SamplingRequest, model: ServedModel, prepare: Callable[[], Sequence[Item]], count: int = 1
) -> Submission:
    """Let an engine write `count` texts, which `prepare` makes. Raises ClientGoneError, and what `submit` does."""
    state = state_of(request)
    has_receipts = bool(asked.receipt) or state.settings.has_receipts
    work = submit(model, count, prepare, terms_of(request, asked), state.metrics, has_receipts=has_receipts)
    return await unless_disconnected(request.receive, work)


async def answered(request: Request, submission: Submission, answer: Answer, *, is_stream: bool) -> Response:
    """The response with an answer; the submission is closed when it is over, or when the client leaves."""
    if is_stream:
        timeout = state_of(request).settings.send_timeout
        return EventStream(guarded(answer, request), close=submission.close, send_timeout=timeout)
    try:
        completions = await unless_disconnected(request.receive, submission.completions())
        return JSONResponse(answer.body(completions))
    finally:
        submission.close()


async def guarded(answer: Answer, request: Request) -> AsyncGenerator[bytes, None]:
    """The events of an answer; where they fail, those that say so."""
    events = answer.events()
    try:
        async for piece in events:
            yield piece
    except Exception as error:
        request_id = request.scope.get("llamita.request_id", "")
        if is_unforeseen(error):
            LOGGER.exception("request %s failed", request_id)
        yield answer.failure_events(failure_of(error, request_id))
    finally:
        await events.aclose()
