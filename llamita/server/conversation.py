"""Conversations of every dialect, once they are messages and tools as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llamita.generation.text_options import TextOptions
from llamita.server.conversation_tokens import PLAIN, Rendering, conversation_tokens
from llamita.server.errors import refused
from llamita.server.models import ServedModel
from llamita.structured.forms import FORMS
from llamita.structured.tool_calls import call_or_json, grammar

Tool = Mapping[str, Any]
REQUIRED = "required"  # a tool must be called, whichever


def conversation_ids(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    rendering: Rendering = PLAIN,
    *,
    param: str = "messages",
) -> list[int]:
    """The ids of a conversation that the model is to answer. Raises RequestError and UsageError.

    param: the field that has the messages.
    """
    if _characters(messages, tools) > model.most_prompt_characters:
        raise model.too_long("more characters than fit", param)
    ids = conversation_tokens(model.texts.tokenizer, messages, tools, rendering)
    return model.checked_ids(ids, param)


def _characters(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> int:
    """How many characters a template has to write at least: contents, and calls and tools as JSON."""
    calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
    data = json.dumps([*calls, *tools], ensure_ascii=False) if calls or tools else ""
    return len(data) + sum(len(message.get("content") or "") for message in messages)


def set_form(
    options: TextOptions, tools: Sequence[Tool], *, call: str | None, schema: Mapping[str, Any] | None
) -> None:
    """Let an answer be a call of a tool, JSON of a schema, or either, as the model likes. Raises RequestError.

    call: the name of the tool that must be called, REQUIRED for any, None where none must be. schema: of the text, if
    there is one, else the options' own: a call that must be made comes before it, and one that may be made may take
    its place.
    """
    own: Any = options.pop("json_schema", None)
    if own is not None and schema is not None:
        raise refused("two schemas are given for one answer: give one of them", param="json_schema")
    schema = own if schema is None else schema
    has_form = any(options.get(form) is not None for form in FORMS)
    if call is not None:
        chosen = tools if call == REQUIRED else [tool for tool in tools if tool["function"]["name"] == call]
        if not chosen:
            raise refused(f"tool_choice names {call}, which is not among the tools", param="tool_choice")
        if has_form:
            raise refused("a tool must be called and the answer have another form: ask for one of them", param="tools")
        options["grammar"] = grammar(chosen)
    elif schema is not None and tools and not has_form:
        options["grammar"] = call_or_json(tools, schema)
    elif schema is not None:
        options["json_schema"] = schema


def allowed(tools: Mapping[str, Tool], names: Sequence[str]) -> list[Tool]:
    """Those of the tools, by name, that have these names. Raises RequestError for a name that none has."""
    if unknown := next((name for name in names if name not in tools), None):
        raise refused(f"tool_choice names {unknown}, which is not among the tools", param="tool_choice")
    return [tools[name] for name in names]


def names_of(tools: Sequence[Tool]) -> tuple[str, ...]:
    """The names of tools."""
    return tuple(tool["function"]["name"] for tool in tools)
