"""The requests of Anthropic's API: strict, bounded, and finite."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llamita.server.anthropic.blocks import MessageParam, TextBlock, ToolName, text_of
from llamita.server.body import StrictModel, bounded
from llamita.server.conversation import REQUIRED
from llamita.server.errors import refused
from llamita.server.sampling_request import MOST_MESSAGES, MaxTokens, RequestModel, SamplingRequest, Stop, Text

OTHER_TOOLS = "this server has none of Anthropic's own tools: give one of type custom, with its input_schema"


class ToolParam(StrictModel):
    """A tool that the client runs; those that only Anthropic's servers know are not here."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: Text | None = None
    input_schema: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") not in ("custom", None):
            raise ValueError(OTHER_TOOLS)
        return data

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates and grammars read it."""
        fields = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}


class ToolChoice(StrictModel):
    """Whether a tool is called: as the model likes, any, the one of a name, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name belongs to type tool, which needs it")
        return self


class OutputFormat(StrictModel):
    """The JSON schema that an answer must follow."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(StrictModel):
    """How an answer looks; `effort` is ignored, as the models think no longer for more of it."""

    format: OutputFormat | None = None


class CountRequest(RequestModel):
    """The body of /v1/messages/count_tokens, and what a conversation is in both."""

    UNSUPPORTED: ClassVar = {
        "mcp_servers": "the server opens no connections",
        "container": "the server runs no code",
        "output_format": "it is called output_config.format now",
    }
    HARMLESS: ClassVar = {"mcp_servers": ([],)}

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[MessageParam], bounded(MOST_MESSAGES, least=1)]
    system: Text | Annotated[list[TextBlock], bounded(1024)] | None = None
    tools: Annotated[list[ToolParam], bounded(512)] | None = None
    tool_choice: ToolChoice | None = None

    @model_validator(mode="after")
    def _check_first(self) -> Self:
        if self.messages[0].role == "system":
            raise ValueError("the first message is of role system: give its text as system")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if self.tool_choice is not None and self.tool_choice.type in ("any", "tool") and not self.tools:
            raise ValueError("tool_choice needs tools")
        return self

    @property
    def continues(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        return self.conversation()[-1]["role"] == "assistant"  # not one of old thoughts alone, which is left out

    @property
    def callable_tools(self) -> list[dict[str, Any]]:
        """The tools that may be called, as chat templates and grammars read them."""
        is_none = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if is_none else [tool.for_template() for tool in self.tools or ()]

    @property
    def forced_call(self) -> str | None:
        """The name of the tool that must be called, REQUIRED for any of them, None where none must be."""
        choice = self.tool_choice
        return choice.name or REQUIRED if choice is not None and choice.type in ("any", "tool") else None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates read them. Raises RequestError where there is none."""
        system = text_of(self.system)
        messages = [one for message in self.messages for one in message.for_template()]
        if not messages:
            raise refused("the messages have no text: give at least one", param="messages")
        return [{"role": "system", "content": system}, *messages] if system else messages


class MessageRequest(SamplingRequest, CountRequest):
    """The body of /v1/messages. Our own sampling fields, such as seed, work too (`extra_body` of the SDK)."""

    max_tokens: MaxTokens
    stop_sequences: Annotated[list[Stop], bounded(16)] | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="after")
    def _check_beginning(self) -> Self:
        text = str(self.conversation()[-1]["content"])
        if self.continues and text != text.rstrip():  # chat templates cut spaces there; Anthropic's rule and words
            raise ValueError("final assistant content cannot end with trailing whitespace")
        return self
