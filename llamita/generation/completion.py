"""What was written, as text: at once, or piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llamita.generation.logprobs import TokenLogprob
from llamita.generation.sequence import Row
from llamita.structured.tool_calls import ToolCall, parse


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """What was written, and why it ended.

    finish_reason: "stop" at an end token or a stop text, which stop_reason then names; "length" at the limit or the
    end of the context; None while it is not over. logprobs: how likely each token was, prompt_logprobs: how likely
    those of the prompt were from its second on, where that was asked for. tools: the names of those that could be
    called.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    tools: tuple[str, ...] = ()

    @property
    def usage(self) -> Usage:
        """Tokens read and written."""
        return Usage(len(self.prompt_token_ids), len(self.token_ids))

    @cached_property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that the text makes; none where it is plain text, or a call is damaged."""
        return parse(self.text, self.tools) if self.tools else []

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Writing:
    """A text in the making: its row, what it follows, and what is to be told of it."""

    row: Row
    prompt_token_ids: list[int]
    tools: tuple[str, ...] = ()
    likely: Sequence[TokenLogprob] | None = None
    prompt_likely: list[TokenLogprob] | None = None

    @property
    def completion(self) -> Completion:
        """What it has come to."""
        row, finish = self.row, self.row.finish
        return Completion(
            text=row.text,
            token_ids=row.token_ids,
            prompt_token_ids=self.prompt_token_ids,
            finish_reason=None if finish is None else finish.reason,
            stop_reason=None if finish is None else finish.matched,
            logprobs=None if self.likely is None else list(self.likely[: len(row.token_ids)]),
            prompt_logprobs=self.prompt_likely,
            tools=self.tools,
        )


class Stream(Iterator[str]):
    """Pieces of text as they are written; `completion` is what there is so far, and at the end all of it."""

    def __init__(self, steps: Iterator[Any], writing: Writing) -> None:
        self._steps = steps
        self._writing = writing
        self._shown = 0

    def __next__(self) -> str:
        for _ in self._steps:
            text = self._writing.row.text
            if piece := text[self._shown :]:
                self._shown = len(text)
                return piece
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """The text so far."""
        return self._writing.completion
