"""What Open Responses (openresponses.org, 2026-04-24) says of a response and its events, as JSON schemas of our own."""

from typing import Any

TEXT, INTEGER, NUMBER, FLAG, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, NULL]}


def listed(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def fields(optional: tuple[str, ...] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these fields; all but the optional ones are required, even where they may be null."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


STATUS = one_of("in_progress", "completed", "incomplete")
TOP = fields(token=TEXT, logprob=NUMBER, bytes=listed(INTEGER))
LOGPROB = fields(token=TEXT, logprob=NUMBER, bytes=listed(INTEGER), top_logprobs=listed(TOP))
PART = fields(("logprobs",), type=one_of("output_text"), text=TEXT, annotations=listed({}), logprobs=listed(LOGPROB))
MESSAGE = fields(type=one_of("message"), id=TEXT, status=STATUS, role=one_of("assistant"), content=listed(PART))
CALL = fields(type=one_of("function_call"), id=TEXT, call_id=TEXT, name=TEXT, arguments=TEXT, status=STATUS)
ITEM = {"oneOf": [MESSAGE, CALL]}
TOOL = fields(
    type=one_of("function"),
    name=TEXT,
    description=maybe(TEXT),
    parameters=maybe({"type": "object"}),
    strict=maybe(FLAG),
)
CHOSEN = fields(("name",), type=one_of("function"), name=TEXT)
VALUES = one_of("none", "auto", "required")
CHOICE = {"oneOf": [VALUES, CHOSEN, fields(type=one_of("allowed_tools"), tools=listed(CHOSEN), mode=VALUES)]}
FORMAT = {
    "oneOf": [
        fields(type=one_of("text")),
        fields(type=one_of("json_object")),
        fields(type=one_of("json_schema"), name=TEXT, description=maybe(TEXT), schema={}, strict=FLAG),
    ]
}
USAGE = fields(
    input_tokens=INTEGER,
    output_tokens=INTEGER,
    total_tokens=INTEGER,
    input_tokens_details=fields(cached_tokens=INTEGER),
    output_tokens_details=fields(reasoning_tokens=INTEGER),
)
RESPONSE = fields(
    id=TEXT,
    object=one_of("response"),
    created_at=INTEGER,
    completed_at=maybe(INTEGER),
    status=TEXT,
    incomplete_details=maybe(fields(reason=TEXT)),
    model=TEXT,
    previous_response_id=maybe(TEXT),
    instructions=maybe(TEXT),
    output=listed(ITEM),
    error=maybe(fields(code=TEXT, message=TEXT)),
    tools=listed(TOOL),
    tool_choice=CHOICE,
    truncation=one_of("auto", "disabled"),
    parallel_tool_calls=FLAG,
    text=fields(format=FORMAT),
    top_p=NUMBER,
    presence_penalty=NUMBER,
    frequency_penalty=NUMBER,
    top_logprobs=INTEGER,
    temperature=NUMBER,
    reasoning=maybe(fields(effort=maybe(TEXT), summary=maybe(TEXT))),
    usage=maybe(USAGE),
    max_output_tokens=maybe(INTEGER),
    max_tool_calls=maybe(INTEGER),
    store=FLAG,
    background=FLAG,
    service_tier=TEXT,
    metadata={"type": "object"},
    safety_identifier=maybe(TEXT),
    prompt_cache_key=maybe(TEXT),
)
PLACE: dict[str, Any] = {"item_id": TEXT, "output_index": INTEGER}
IN_PART: dict[str, Any] = {**PLACE, "content_index": INTEGER}
# The fields of each event besides `type` and `sequence_number`.
EVENTS: dict[str, dict[str, Any]] = {
    **{f"response.{state}": {"response": RESPONSE} for state in ("created", "in_progress", "completed", "incomplete")},
    "response.failed": {"response": RESPONSE},
    **{f"response.output_item.{what}": {"output_index": INTEGER, "item": ITEM} for what in ("added", "done")},
    **{f"response.content_part.{what}": {**IN_PART, "part": PART} for what in ("added", "done")},
    "response.output_text.delta": {**IN_PART, "delta": TEXT, "logprobs": listed(LOGPROB)},
    "response.output_text.done": {**IN_PART, "text": TEXT, "logprobs": listed(LOGPROB)},
    "response.function_call_arguments.delta": {**PLACE, "delta": TEXT},
    "response.function_call_arguments.done": {**PLACE, "arguments": TEXT},
    "error": {"error": fields(type=TEXT, code=maybe(TEXT), message=TEXT, param=maybe(TEXT))},
}


def schema_of(event: str) -> dict[str, Any]:
    """The schema of an event."""
    return fields(type=one_of(event), sequence_number=INTEGER, **EVENTS[event])
