"""Messages and tools as OpenAI's clients send them, and as chat templates read them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from llamita.server.body import StrictModel, bounded
from llamita.server.errors import refused
from llamita.server.sampling_request import Text, ToolName, text_alone
from llamita.structured.tool_calls import check_arguments

PARTS = ("text", "input_text", "output_text", "refusal")
SYNONYMS = {"developer": "system", "function": "tool"}


class TextPart(StrictModel):
    """A part of a content; there are only texts, as the models read nothing else."""

    type: Annotated[Literal["text", "input_text", "output_text", "refusal"], text_alone(*PARTS)]
    text: Annotated[Text, Field(validation_alias=AliasChoices("text", "refusal"))]  # a refusal's is called so


class CalledFunction(StrictModel):
    """A function that an answer called; the arguments are JSON text."""

    name: ToolName
    arguments: Text


class CalledTool(StrictModel):
    """A call in an answer."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(StrictModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], bounded(1024, least=1)] | None = None
    refusal: Text | None = None  # of an earlier answer, whose content is null then
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[CalledTool], bounded(64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: plain text, arguments as objects. Raises RequestError."""
        content = self.refusal if self.content is None else self.content
        if content is None and not self.tool_calls:
            raise refused(f"a message of role {self.role} has no content: give it a text", param="messages")
        if self.role == "tool" and self.tool_call_id is None:
            raise refused("a message of role tool needs the tool_call_id of its call", param="messages")
        message: dict[str, Any] = {"role": SYNONYMS.get(self.role, self.role), "content": text_of(content)}
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            if self.role != "assistant":
                raise refused("only messages of role assistant have tool_calls", param="messages")
            message["tool_calls"] = [
                called(call.id, call.function.name, call.function.arguments) for call in self.tool_calls
            ]
        return message


class FunctionTool(StrictModel):
    """A function that may be called; its parameters are a JSON schema."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(StrictModel):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: FunctionTool


class ToolChoiceFunction(StrictModel):
    """The function that must be called."""

    name: ToolName


class ToolChoice(StrictModel):
    """The choice of one function."""

    type: Literal["function"]
    function: ToolChoiceFunction


class AllowedToolSet(StrictModel):
    """Some of the tools: those that may be called, or one of which must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolChoice], bounded(128, least=1)]


class AllowedTools(StrictModel):
    """The choice of some tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolSet


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """A content as one text."""
    return (content or "") if isinstance(content, str | None) else "".join(part.text for part in content)


def called(call_id: str, name: str, arguments: str, param: str = "messages") -> dict[str, Any]:
    """A call as templates read it. Raises RequestError where its arguments are no JSON object."""
    try:
        read = json.loads(arguments or "{}")
        check_arguments(read)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise refused(f"the arguments of {name} are no JSON object", param=param)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": read}}


def tool_data(function: FunctionTool, name: str | None = None) -> dict[str, Any]:
    """A tool as templates and grammars read it, by a name of its own if one is given."""
    fields = {"name": name or function.name, "description": function.description, "parameters": function.parameters}
    return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}
