"""The input of a batch: lines in OpenAI's batch format, all checked before a model is loaded."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llamita.checks import parsed_json, quoted, shortened, unique
from llamita.errors import BrokenFileError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
ID_PREFIX = "batch_req_"
LONGEST_ID = 512  # characters of a custom_id


@dataclass(frozen=True)
class BatchRequest:
    """A line of the input that is a request.

    id: a digest of the line's content, which shows that an answer is of this request. body: JSON. model: the name in
    the body, None where there is none.
    """

    id: str
    number: int
    custom_id: str
    url: str
    body: bytes
    model: str | None


@dataclass(frozen=True)
class BadLine:
    """A line of the input that is no request, and why."""

    id: str
    number: int
    custom_id: str | None
    reason: str


def read_input(lines: Iterable[bytes], name: str, *, keeps_bad: bool = False) -> list[BatchRequest | BadLine]:
    """The lines of a batch; blank ones are left out. Raises BrokenFileError for the first bad one.

    keeps_bad: bad ones are among the result instead.
    """
    found: list[BatchRequest | BadLine] = []
    numbers: dict[str, int] = {}  # custom_id -> its line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _entry(line, number, numbers)
        if isinstance(entry, BadLine) and not keeps_bad:
            raise BrokenFileError(f"{name}: {entry.reason}")
        if entry.custom_id is not None:
            numbers[entry.custom_id] = number
        found.append(entry)
    return found


def _entry(line: bytes, number: int, numbers: dict[str, int]) -> BatchRequest | BadLine:
    """A line as what it is."""
    custom_id = None
    try:
        fields = _fields(line)
        custom_id = _custom_id(fields, numbers)
        return _request(fields, number, custom_id)
    except ValueError as error:
        return BadLine(_id(number, line.decode("latin-1").strip()), number, custom_id, f"line {number} {error}")


def _fields(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError with what the line is or has instead."""
    try:
        fields = parsed_json(line.decode("utf-8-sig"), unique)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"is no JSON ({shortened(error, 100)})") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object: give it custom_id, method, url and body")
    return fields


def _custom_id(fields: dict[str, Any], numbers: dict[str, int]) -> str:
    """The name that a line gives its request. Raises ValueError where it has none of its own."""
    given = fields.get("custom_id")
    if not isinstance(given, str) or not 0 < len(given) <= LONGEST_ID:
        raise ValueError(f"has the custom_id {quoted(given)}: give it a text of 1 to {LONGEST_ID} characters")
    if given in numbers:
        raise ValueError(f"has the custom_id {quoted(given)} of line {numbers[given]}: give each line its own")
    return given


def _request(fields: dict[str, Any], number: int, custom_id: str) -> BatchRequest:
    """A line as a request; what its body says, the server checks. Raises ValueError."""
    method, url, body = fields.get("method"), fields.get("url"), fields.get("body")
    if method != "POST":
        raise ValueError(f"has the method {quoted(method)}: it must be 'POST'")
    if url not in URLS:
        raise ValueError(f"has the url {quoted(url)}: it must be one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise ValueError("has no body: give it a JSON object, as the url takes it")
    if body.get("stream"):
        raise ValueError("asks for a stream: the answers of a batch are whole, leave out stream")
    text, model = json.dumps(body), body.get("model")
    return BatchRequest(
        _id(custom_id, url, text), number, custom_id, url, text.encode(), model if isinstance(model, str) else None
    )


def _id(*content: object) -> str:
    return ID_PREFIX + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
