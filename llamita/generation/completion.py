"""The written text with its usage and finish reason: as a whole, or as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from llamita.generation.logprobs import TokenLogprob
from llamita.generation.run import Acceptance, Run
from llamita.generation.sequence import Sequence
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
    """A written text, and why it ended.

    finish_reason: "stop" at an end token or a stop string, which stop_reason then names; "length" at the limit or the
    end of the context; None while it is not over. logprobs: of each token, prompt_logprobs: of the prompt's tokens
    from the second on, if asked for. tools: names of the tools that could be called. acceptance: counts of
    speculation, over all texts of the batch.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    tools: tuple[str, ...] = ()
    acceptance: Acceptance | None = field(default=None, compare=False)

    @property
    def usage(self) -> Usage:
        """Tokens read and written."""
        return Usage(len(self.prompt_token_ids), len(self.token_ids))

    @cached_property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls in the text; none if it is plain text or a call is damaged."""
        return parse(self.text, self.tools) if self.tools else []

    def __str__(self) -> str:
        return self.text


def completion_of(
    sequence: Sequence, *, tools: tuple[str, ...] = (), acceptance: Acceptance | None = None
) -> Completion:
    """The completion of one sequence, so far."""
    finish, logprobs, of_prompt = sequence.finish, sequence.logprobs, sequence.prompt_logprobs
    return Completion(
        text=sequence.text,
        token_ids=sequence.token_ids,
        prompt_token_ids=sequence.prompt_token_ids,
        finish_reason=None if finish is None else finish.reason,
        stop_reason=None if finish is None else finish.matched,
        logprobs=None if logprobs is None else list(logprobs[: len(sequence.token_ids)]),
        prompt_logprobs=None if of_prompt is None else list(of_prompt),
        tools=tools,
        acceptance=acceptance,
    )


class Stream(Iterator[str]):
    """Pieces of text as they are written; `completion` holds the whole text so far."""

    def __init__(self, run: Run, tools: tuple[str, ...] = ()) -> None:
        self._run, self._tools = run, tools
        self._shown = 0

    def __next__(self) -> str:
        for _ in self._run.steps:
            text = self._run.sequences[0].text
            if piece := text[self._shown :]:
                self._shown = len(text)
                return piece
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """The text so far."""
        return completion_of(self._run.sequences[0], tools=self._tools, acceptance=self._run.acceptance)

    def whole(self) -> Completion:
        """The text, written to its end."""
        for _ in self:
            pass
        return self.completion
