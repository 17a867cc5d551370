"""The objects of the Responses API: the response, its items and their parts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from llamita.engine.handle import RequestHandle
from llamita.generation.logprobs import TokenLogprob
from llamita.server.models import ServedModel
from llamita.server.openai.logprobs import chat_entry
from llamita.server.openai.response_request import ResponseRequest
from llamita.server.usage import tokens_cached, tokens_read, tokens_written
from llamita.tokenizer.token_bytes import TokenTexts


def response_object(model: ServedModel, asked: ResponseRequest) -> dict[str, Any]:
    """A response that has just begun: what was asked for, and that nothing is there yet."""
    saved = model.texts.model.generation_config
    draws = saved.get("do_sample", False) or asked.temperature is not None or asked.top_p is not None
    warm = saved.get("temperature", 1.0) if asked.temperature is None else asked.temperature
    return {
        "id": f"resp_{uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "model": model.name,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "background": False,
        "temperature": warm if draws else 0.0,
        "top_p": saved.get("top_p", 1.0) if asked.top_p is None else asked.top_p,
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "top_logprobs": asked.top_logprobs or 0,
        "text": {"format": _format(asked)},
        "tool_choice": _tool_choice(asked),
        "tools": [tool.model_dump() for tool in asked.offered_tools],
        "truncation": "disabled",
        "service_tier": "default",
        "metadata": asked.metadata or {},
        "user": asked.user,
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
        "usage": None,
    }


def response_usage(handles: Sequence[RequestHandle]) -> dict[str, Any]:
    """`usage` of a response that is over."""
    read, written = tokens_read(handles, 1), tokens_written(handles)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": tokens_cached(handles, 1), "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def message_item(item_id: str, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A message of the answer."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": parts}


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(name: str, arguments: str, status: str, namespaces: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """A call of a function; its arguments are JSON text. namespaces: of the functions that have one, by full name."""
    namespace, own_name = namespaces.get(name, (None, name))
    return {
        "id": f"fc_{uuid4().hex}",
        "type": "function_call",
        "status": status,
        "call_id": f"call_{uuid4().hex[:24]}",
        "name": own_name,
        **({} if namespace is None else {"namespace": namespace}),
        "arguments": arguments,
    }


def part_logprobs(entries: Sequence[TokenLogprob] | None, texts: TokenTexts) -> list[dict[str, Any]]:
    """`logprobs` of a text."""
    return [chat_entry(entry, texts) for entry in entries or ()]


def _format(asked: ResponseRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text is not None else None
    if form is None or form.type == "text":
        return {"type": "text"}
    if form.type == "json_object":
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "name": form.name or "schema",
        "description": None,
        "schema": form.schema_,
        "strict": True,
    }


def _tool_choice(asked: ResponseRequest) -> Any:
    choice = asked.tool_choice
    return choice if isinstance(choice, str) else "auto" if choice is None else choice.model_dump()
