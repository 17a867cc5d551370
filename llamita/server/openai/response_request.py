"""The body of /v1/responses, and the messages that its items are."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from llamita.server.body import StrictModel, at_most, bounded
from llamita.server.conversation import REQUIRED, Tool, allowed
from llamita.server.openai.messages import (
    SYNONYMS,
    TextPart,
    called,
    text_of,
    tool_data,
)
from llamita.server.openai.other_servers import NOT_HERE, NOTHING
from llamita.server.openai.response_tools import (
    AllowedTools,
    GivenTool,
    NamedTool,
    SearchTool,
    full_name,
    functions,
)
from llamita.server.sampling_request import MOST_MESSAGES, MaxTokens, SamplingRequest, Text, ToolName

LOGPROBS = "message.output_text.logprobs"
KINDS = "an item is a message, a function_call, a function_call_output or reasoning; nothing is kept here to refer to"
STATELESS = "this server keeps no responses: send the whole conversation as input"
Parts = Annotated[list[TextPart], bounded(1024, least=1)]


class MessageItem(StrictModel):
    """A turn of a conversation, of the user or of an earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        return {"role": SYNONYMS.get(self.role, self.role), "content": text_of(self.content)}


class CallItem(StrictModel):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(max_length=256)]
    name: ToolName
    namespace: ToolName | None = None
    arguments: Text

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it. Raises RequestError."""
        call = called(self.call_id, full_name(self.namespace, self.name), self.arguments, "input")
        return {"role": "assistant", "content": "", "tool_calls": [call]}


class OutputItem(StrictModel):
    """What a called function gave back."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(max_length=256)]
    output: Text | Parts

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        return {"role": "tool", "content": text_of(self.output), "tool_call_id": self.call_id}


class ReasoningItem(StrictModel):
    """What another server's model thought before an answer; it is left out."""

    type: Literal["reasoning"]

    def for_template(self) -> None:
        """Nothing."""


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind, custom_error_type="item", custom_error_message=KINDS),
]


class TextFormat(StrictModel):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(max_length=64)] | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema belongs to type json_schema, which needs it")
        return self

    @property
    def json_schema_option(self) -> dict[str, Any] | None:
        """The engine's option, None for any text."""
        return {"type": "object"} if self.type == "json_object" else self.schema_


class TextSettings(StrictModel):
    """How the text of an answer is written."""

    format: TextFormat | None = None


class ResponseRequest(SamplingRequest):
    """The body of /v1/responses; of a request to /v1/responses/input_tokens too."""

    UNSUPPORTED: ClassVar = {
        **NOT_HERE,
        "previous_response_id": STATELESS,
        "conversation": STATELESS,
        "background": STATELESS,
        "prompt": "prompts are not kept here: send the text",
        "truncation": "prompts are never cut: send less",
        "context_management": "prompts are never cut: send less",
    }
    HARMLESS: ClassVar = {**NOTHING, "truncation": ("disabled",), "background": (False,)}

    input: Text | Annotated[list[Item], bounded(MOST_MESSAGES, least=1)]
    instructions: Text | None = None
    max_output_tokens: MaxTokens | None = None
    tools: Annotated[list[GivenTool], bounded(128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Annotated[str, Field(max_length=256)]], bounded(16)] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], BeforeValidator(at_most(16))] | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=64)] | None = None

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that may be called, as templates and grammars read them. Raises RequestError for unknown ones."""
        choice = self.tool_choice
        if "none" in (choice, getattr(choice, "mode", None)):
            return []
        named = {full_name(space, tool.name): tool for space, tool in functions(self.tools or ())}
        tools = {name: tool_data(tool, name) for name, tool in named.items()}
        if not isinstance(choice, AllowedTools):
            return list(tools.values())
        return allowed(tools, [one.name for one in choice.tools])

    @property
    def namespaces(self) -> dict[str, tuple[str, str]]:
        """The full names of the functions that have a namespace -> the namespace, and the name in it."""
        spaced = [(space, tool.name) for space, tool in functions(self.tools or ()) if space is not None]
        return {full_name(*names): names for names in spaced}

    @property
    def offered_tools(self) -> list[GivenTool]:
        """The tools that a model can call, as they were given."""
        return [tool for tool in self.tools or () if not isinstance(tool, SearchTool)]

    @property
    def forced_call(self) -> str | None:
        """The name of the tool that must be called, REQUIRED for any of them, None where none must be."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return choice.name
        return REQUIRED if REQUIRED in (choice, getattr(choice, "mode", None)) else None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates read it. Raises RequestError."""
        head = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*head, {"role": "user", "content": self.input}]
        return [*head, *(message for item in self.input if (message := item.for_template()) is not None)]
