"""What messages are made of in Anthropic's API, and the same as chat templates read it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from llamita.server.body import StrictModel, bounded
from llamita.server.sampling_request import Text, text_alone

KINDS = "a block is a text, a tool_use or a tool_result: the models read nothing else"
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # twice as long as OpenAI's
Id = Annotated[str, Field(min_length=1, max_length=256)]


class TextBlock(StrictModel):
    """A text."""

    type: Annotated[Literal["text"], text_alone("text")]
    text: Text


class ToolUseBlock(StrictModel):
    """A call of a tool in an answer."""

    type: Literal["tool_use"]
    id: Id
    name: ToolName
    input: dict[str, Any]

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates read it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.input}}


class ToolResultBlock(StrictModel):
    """What a called tool gave back."""

    type: Literal["tool_result"]
    tool_use_id: Id
    content: Text | Annotated[list[TextBlock], bounded(1024)] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        return {"role": "tool", "content": text_of(self.content), "tool_call_id": self.tool_use_id}


class ThinkingBlock(StrictModel):
    """What another model thought before it answered; it is left out, as Anthropic's own server does with old ones."""

    type: Literal["thinking", "redacted_thinking"]


def _kind(block: Any) -> Any:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return "thinking" if kind == "redacted_thinking" else kind


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ThinkingBlock, Tag("thinking")],
    Discriminator(_kind, custom_error_type="block", custom_error_message=KINDS),
]


class MessageParam(StrictModel):
    """A turn of a conversation; one of role system says more to the model from there on, as agents do."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], bounded(1024)]

    @model_validator(mode="after")
    def _check_system(self) -> Self:
        if self.role == "system" and not all(isinstance(block, str | TextBlock) for block in self.content):
            raise ValueError("a message of role system has texts alone")
        return self

    def for_template(self) -> list[dict[str, Any]]:
        """The turn as messages of chat templates: results of tools are messages of their own."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        results = [block.for_template() for block in self.content if isinstance(block, ToolResultBlock)]
        calls = [block.for_template() for block in self.content if isinstance(block, ToolUseBlock)]
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        if not (texts or calls):
            return results
        return [*results, {"role": self.role, "content": text_of(texts)} | ({"tool_calls": calls} if calls else {})]


def text_of(content: str | Sequence[TextBlock] | None) -> str:
    """A content as one text, with nothing between its blocks."""
    return (content or "") if isinstance(content, str | None) else "".join(block.text for block in content)
