"""Errors and their statuses."""

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from llamita import errors
from llamita.server.anthropic.schemas import MessageRequest
from llamita.server.app import TABLES
from llamita.server.body import check_json
from llamita.server.errors import Failure, RequestError, failure_of, is_unforeseen, refused
from llamita.server.openai.errors import error_body
from llamita.server.openai.response_request import ResponseRequest
from llamita.server.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from llamita.server.other_paths import OTHERS, OURS
from llamita.server.page.page import PATHS
from llamita.server.tokens import DetokenizeRequest


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


def test_paths_of_other_servers_are_answered_with_ours() -> None:
    here = {route.path for table in TABLES for route in table.routes}
    assert OTHERS.keys() <= here
    assert not OURS.keys() & (here | PATHS)
    failure = failure_of(HTTPException(404), path="/api/generate")
    assert (failure.status, failure.message) == (
        404, "there is no /api/generate here: /v1/completions does that, /docs lists all paths"
    )  # fmt: skip
    assert "no such path" in failure_of(HTTPException(404), path="/api/other").message


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
            "messages.0.content.0.type",
            "send a part of type text",
        ),
        (CompletionRequest, b'{"model": "a", "prompt": [-1]}', "prompt.0", "greater than or equal to 0"),
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


def test_a_field_that_cannot_be_had_is_named() -> None:
    with pytest.raises(RequestError, match="suffix is not supported: the models only go on") as caught:
        CompletionRequest.model_validate_json(b'{"model": "a", "prompt": "a", "suffix": "b"}')
    assert (caught.value.failure.param, caught.value.failure.code) == ("suffix", "unsupported_parameter")


MANY = {"messages": [{"role": "user", "content": [{}] * 1000}] * 1000, "logit_bias": {str(n): "" for n in range(2000)}}


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (ChatRequest, MANY),
        (MessageRequest, {**MANY, "max_tokens": 1}),
        (ResponseRequest, {"input": MANY["messages"], "metadata": {str(n): 1 for n in range(2000)}}),
        (CompletionRequest, {"prompt": [1.5] * 100_000}),
        (CompletionRequest, {"prompt": [["a"] * 1000] * 60}),
        (EmbeddingRequest, {"input": [None] * 100_000}),
        (DetokenizeRequest, {"tokens": [-1] * 100_000}),
    ],
)
def test_of_many_errors_few_are_noted(schema: type, fields: dict[str, Any]) -> None:
    """A million took eleven seconds of the event loop."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(json.dumps({"model": "a", **fields}))
    assert caught.value.error_count() < 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"a": 1, "b": [{"c": 1, "c": 2}]}', "'c' twice"),
        (b'{"a": [NaN]}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
    ],
)
def test_json_that_readers_take_differently_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        check_json(body)
    assert caught.value.failure.code == "invalid_json"
    check_json(b'{"a": {"b": 1}, "b": {"b": 1.5e300}, "c": [null, true, "NaN"]}')
