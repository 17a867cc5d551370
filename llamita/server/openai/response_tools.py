"""The tools of the Responses API: functions, alone or under a namespace; and which of them may or must be called."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llamita.server.body import StrictModel, bounded
from llamita.server.openai.messages import FunctionTool
from llamita.server.sampling_request import Text

SEARCHES = ("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11")
FullName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # of a function, with its namespace
KINDS = "a tool is a function or a namespace of functions: this server runs none itself"


class ResponseTool(FunctionTool):
    """A function that the client runs."""

    type: Literal["function"]


class NamespaceTool(StrictModel):
    """Functions under a common name, as Codex groups those of other agents and of MCP servers."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
    description: Text = ""
    tools: Annotated[list[ResponseTool], bounded(128, least=1)]


class SearchTool(StrictModel):
    """A search by the server, which a model may choose to do; Codex always offers it. The models here never do."""

    type: Literal[SEARCHES]  # pyright: ignore[reportInvalidTypeForm]


def _kind(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "search" if kind in SEARCHES else kind


GivenTool = Annotated[
    Annotated[ResponseTool, Tag("function")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[SearchTool, Tag("search")],
    Discriminator(_kind, custom_error_type="tool", custom_error_message=KINDS),
]


class NamedTool(StrictModel):
    """The function that must be called."""

    type: Literal["function"]
    name: FullName


class AllowedTools(StrictModel):
    """Those of the tools that may be called, or one of which must be."""

    type: Literal["allowed_tools"]
    mode: Literal["none", "auto", "required"] = "auto"
    tools: Annotated[list[NamedTool], bounded(128, least=1)]


def functions(tools: Sequence[GivenTool]) -> Iterator[tuple[str | None, ResponseTool]]:
    """All functions, each with its namespace if it has one."""
    for tool in tools:
        if isinstance(tool, ResponseTool):
            yield None, tool
        elif isinstance(tool, NamespaceTool):
            yield from ((tool.name, function) for function in tool.tools)


def full_name(namespace: str | None, name: str) -> str:
    """A function's name as the model reads and writes it."""
    return name if namespace is None else f"{namespace}.{name}"
