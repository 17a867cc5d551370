"""What was written, as text: at once, or piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamita.generation.stop import Row


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
    end of the context; None while it is not over.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None = None

    @classmethod
    def of(cls, row: Row, prompt_token_ids: list[int]) -> "Completion":
        """What a row has come to."""
        reason, matched = (None, None) if row.finish is None else (row.finish.reason, row.finish.matched)
        return cls(row.text, row.token_ids, prompt_token_ids, reason, matched)

    @property
    def usage(self) -> Usage:
        """Tokens read and written."""
        return Usage(len(self.prompt_token_ids), len(self.token_ids))

    def __str__(self) -> str:
        return self.text


class Stream(Iterator[str]):
    """Pieces of text as they are written; `completion` is what there is so far, and at the end all of it."""

    def __init__(self, steps: Iterator[Any], row: Row, prompt_token_ids: list[int]) -> None:
        self._steps = steps
        self._row = row
        self._prompt = prompt_token_ids
        self._shown = 0

    def __next__(self) -> str:
        for _ in self._steps:
            if piece := self._row.text[self._shown :]:
                self._shown = len(self._row.text)
                return piece
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """The text so far."""
        return Completion.of(self._row, self._prompt)
