"""OpenAI's error object."""

from typing import Any

from llamita.server.errors import Failure


def error_body(failure: Failure, _request_id: str = "") -> dict[str, Any]:
    """What openai-python reads `message`, `type`, `param` and `code` from."""
    fields = {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}
    return {"error": fields}
