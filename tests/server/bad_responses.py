"""The corpus of bad input of serving.md 4.2, for /v1/responses."""

from typing import Any

from tests.server.bad_input import NAN, shared


def responses() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/responses."""
    base = {"model": "cria", "input": "Hi", "max_output_tokens": 2}
    inputs: list[Any] = [
        None, [], 1, [1], [{}], [{"type": "item_reference", "id": "a"}], [{"role": "root", "content": "a"}],
        [{"role": "user", "content": []}], [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}],
        [{"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]}],
        "a" * 1_000_000, [{"role": "user", "content": "a"}] * 10_000,
    ]  # fmt: skip
    formats: list[Any] = [{"type": "sound"}, {"type": "json_schema"}, 1]
    found = [{**base, "input": value} for value in inputs]
    found += [{**base, "text": {"format": value}} for value in formats]
    found += [{**base, "max_output_tokens": value} for value in (0, -1, NAN, "1")]
    found += [{**base, "previous_response_id": "a"}, {**base, "background": True}, {**base, "truncation": "auto"}]
    return [*found, {**base, "top_logprobs": 21}]


def forced_responses() -> list[dict[str, Any]]:
    """Wrong bodies of /v1/responses alone, whose answers would be wrong."""
    base = {"model": "cria", "input": "Hi", "max_output_tokens": 2}
    found = [*responses(), *(body for body in shared(base) if "n" not in body)]
    found.append({**base, "tool_choice": {"type": "function", "name": "f"}})
    return [*found, {**base, "max_output_tokens": 10**9}]


RESPONSE_ENDPOINTS = {"/v1/responses": forced_responses, "/v1/responses/input_tokens": responses}
