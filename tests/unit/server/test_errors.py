"""Errors and their statuses."""

import pytest
import torch
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from llamita import errors
from llamita.server.errors import Failure, RequestError, failure_of, is_unforeseen, refused
from llamita.server.openai.errors import error_body
from llamita.server.openai.schemas import ChatRequest, CompletionRequest


@pytest.mark.parametrize(
    ("error", "status", "is_final"),
    [
        (errors.UsageError("a"), 400, True),
        (errors.UnsupportedError("a"), 400, True),
        (errors.OverloadedError("a"), 429, False),
        (errors.ClosedError("a"), 503, False),
        (errors.AbortedError("a"), 503, False),
        (errors.OverdueError("a"), 408, True),
        (errors.NotFiniteError("a"), 500, True),
        (errors.MemoryShortError("a"), 503, False),
        (torch.OutOfMemoryError("secret"), 503, False),
        (HTTPException(404), 404, True),
        (HTTPException(405), 405, True),
        (RuntimeError("secret"), 500, True),
        (refused("a", status=413), 413, True),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int, is_final: bool) -> None:
    failure = failure_of(error, "req_1")
    assert (failure.status, failure.is_final) == (status, is_final)
    assert "secret" not in failure.message
    assert is_unforeseen(error) == (type(error) is RuntimeError)
    assert (failure.retry_after is None) == (status not in (429, 503))


def test_openai_s_object_has_four_fields() -> None:
    failure = Failure(400, "a", code="b", param="c")
    assert error_body(failure) == {
        "error": {"message": "a", "type": "invalid_request_error", "code": "b", "param": "c"}
    }
    assert failure_of(RequestError(failure)) is failure


@pytest.mark.parametrize(
    ("schema", "body", "param", "says"),
    [
        (ChatRequest, b'{"messages": []}', "model", "Field required"),
        (
            ChatRequest,
            b'{"model": "a", "messages": [{"role": "user", "content": [{"type": "a"}]}]}',
            None,
            "Input should be 'text'",
        ),
        (CompletionRequest, b'{"model": "a", "prompt": [-1]}', "prompt.0", "greater than or equal to 0"),
        (CompletionRequest, b'{"model": "a", "prompt": "a", "suffix": "b"}', None, "suffix is not supported"),
        (CompletionRequest, b"{", None, "no JSON"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_a_sentence(schema: type, body: bytes, param: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(body)
    failure = failure_of(caught.value)
    assert failure.status == 400
    assert says in failure.message
    assert param is None or failure.param == param
