"""OpenAI's error object."""

from collections.abc import Mapping
from typing import Any

from llamita.server.errors import Failure

TEXT = {"type": "string"}
FIELDS = {"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}
# The schema of `error_body`.
ERROR: Mapping[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": list(FIELDS), "properties": FIELDS}},
}


def error_body(failure: Failure, _request_id: str = "") -> dict[str, Any]:
    """What openai-python reads `message`, `type`, `param` and `code` from."""
    fields = {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}
    return {"error": fields}
