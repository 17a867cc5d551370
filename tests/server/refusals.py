"""What the answer to bad input must be, in the dialect of its path."""

import httpx


def complaint(answer: httpx.Response) -> str | None:
    """What is wrong with an answer to bad input."""
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:100]}"
    body = answer.json()
    error, is_anthropics = body["error"], answer.request.url.path.startswith("/v1/messages")
    fields = {"message", "type"} if is_anthropics else {"message", "type", "param", "code"}
    if set(error) != fields or not error["message"] or len(error["message"]) > 700:
        return f"no error object: {answer.text[:100]}"
    if is_anthropics and (body["type"], body["request_id"]) != ("error", answer.headers["request-id"]):
        return f"no error of Anthropic's: {answer.text[:100]}"
    return None if "x-request-id" in answer.headers else "no x-request-id"
