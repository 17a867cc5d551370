"""The requests of OpenAI's API: strict, bounded, and finite."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llamita.server.body import StrictModel, bounded
from llamita.server.conversation import REQUIRED, Tool, allowed
from llamita.server.openai.messages import AllowedTools, ChatMessage, ChatTool, ToolChoice, tool_data
from llamita.server.openai.other_servers import NOT_HERE, NOTHING
from llamita.server.openai.template_fields import TemplateFields
from llamita.server.openai.token_fields import TokenRequest
from llamita.server.sampling_request import (
    MOST_MESSAGES,
    MOST_N,
    MaxTokens,
    RequestModel,
    StreamOptions,
    Text,
    TokenId,
)

TokenIds = Annotated[list[TokenId], bounded(2_000_000, least=1)]
MOST_PROMPTS = 64
MOST_INPUTS = 2048  # OpenAI's limit; clients send hundreds at once


class JsonSchemaFormat(StrictModel):
    """A JSON schema under a name; the schema's own field is called schema."""

    name: Annotated[str, Field(max_length=64)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None  # llama.cpp's, of type json_object

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, which needs it")
        if self.schema_ is not None and self.type != "json_object":
            raise ValueError("schema belongs into json_schema, or next to type json_object")
        return self

    @property
    def json_schema_option(self) -> Mapping[str, Any] | None:
        """The engine's option, None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        if self.type == "json_object":
            return {"type": "object"} if self.schema_ is None else self.schema_
        return None


class ChatRequest(TokenRequest, TemplateFields):
    """The body of /v1/chat/completions."""

    UNSUPPORTED: ClassVar = {
        **NOT_HERE,
        "functions": "it is called tools now",
        "function_call": "it is called tool_choice now",
        "audio": "the models write text alone",
        "modalities": "the models write text alone",
        "web_search_options": "the server opens no connections",
        "chat_template": "the template is the checkpoint's",
        "documents": "put them into a message",
        "echo": "a conversation is no text to repeat",
    }
    HARMLESS: ClassVar = {
        **NOTHING, "modalities": (["text"],), "function_call": ("none", "auto"), "functions": ([],),
        "echo": (False,), "documents": ([],), "add_special_tokens": (False,),
    }  # fmt: skip

    messages: Annotated[list[ChatMessage], bounded(MOST_MESSAGES, least=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=MOST_N)] | None = 1
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ChatTool], bounded(128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        check_stream(self.stream_options, self.stream)
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        return self

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that may be called, as templates and grammars read them. Raises RequestError for unknown ones."""
        choice = self.tool_choice
        if choice == "none":
            return []
        tools = {tool.function.name: tool_data(tool.function) for tool in self.tools or ()}
        if not isinstance(choice, AllowedTools):
            return list(tools.values())
        return allowed(tools, [one.function.name for one in choice.allowed_tools.tools])

    @property
    def forced_call(self) -> str | None:
        """The name of the tool that must be called, REQUIRED for any of them, None where none must be."""
        choice = self.tool_choice
        if isinstance(choice, ToolChoice):
            return choice.function.name
        mode = choice.allowed_tools.mode if isinstance(choice, AllowedTools) else choice
        return REQUIRED if mode == REQUIRED else None


class CompletionRequest(TokenRequest):
    """The body of /v1/completions."""

    UNSUPPORTED: ClassVar = {**NOT_HERE, "suffix": "the models only go on from a text"}
    HARMLESS: ClassVar = {**NOTHING, "suffix": ("",), "add_special_tokens": (True,)}

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], bounded(MOST_PROMPTS, least=1)]
        | Annotated[list[TokenIds], bounded(MOST_PROMPTS, least=1)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**27)] | None = 16
    n: Annotated[int, Field(ge=1, le=MOST_N)] | None = 1
    stream_options: StreamOptions | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_N)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    response_format: ResponseFormat | None = None  # vLLM's and llama.cpp's, here

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        check_stream(self.stream_options, self.stream)
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which is for echo with logprobs: ask for at least 1, or for echo")
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is not supported but as n: ask for n texts and choose")
        if len(self.prompts) * (self.n or 1) > MOST_PROMPTS:
            raise ValueError(f"n times the prompts are more than {MOST_PROMPTS} texts: ask in several requests")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, whichever way they were given."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else self.prompt  # pyright: ignore[reportReturnType]


class EmbeddingRequest(RequestModel):
    """The body of /v1/embeddings."""

    UNSUPPORTED: ClassVar = {name: NOT_HERE[name] for name in ("truncate_prompt_tokens", "add_special_tokens")}
    HARMLESS: ClassVar = {"add_special_tokens": (True,)}

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: (
        Text
        | TokenIds
        | Annotated[list[Text], bounded(MOST_INPUTS, least=1)]
        | Annotated[list[TokenIds], bounded(MOST_INPUTS, least=1)]
    )
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts as a list, whichever way they were given."""
        is_one = isinstance(self.input, str) or isinstance(self.input[0], int)
        return [self.input] if is_one else self.input  # pyright: ignore[reportReturnType]


def check_stream(options: StreamOptions | None, is_stream: bool | None) -> None:
    """Raise ValueError for options of a stream where there is none."""
    if options is not None and not is_stream:
        raise ValueError("stream_options needs stream to be true")
