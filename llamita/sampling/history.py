"""The text before the next token, as penalties read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

NO_TOKEN = -1  # fills columns without text of the row: padding, or the other of prompt and new text


@dataclass(frozen=True, eq=False)
class History:
    """The rows of a batch so far, prompt and new tokens, all ending in the last column.

    input_ids: (B, T) as the model read them. prompt_length: columns of the prompt, padding included, as transformers
    counts lengths. first: the column (B,) in which each row begins, None where there is no padding.
    written: how many tokens of each row the model wrote, for ragged rows; None means all columns after the prompt.
    """

    input_ids: Tensor
    prompt_length: int
    first: Tensor | None = None
    written: Sequence[int] | None = None

    @classmethod
    def begin(cls, input_ids: Tensor, attention_mask: Tensor | None = None) -> "History":
        """A history of prompts (B, T) alone, padded on the left where the mask (B, M) is 0.

        The mask may begin before the ids, with a prompt of embeddings.
        """
        length = input_ids.shape[1]
        if attention_mask is None or length == 0:
            return cls(input_ids, length)
        first = (attention_mask != 0).int().argmax(-1) - (attention_mask.shape[1] - length)
        return cls(input_ids, length, first.clamp(min=0) if bool((first > 0).any()) else None)

    def append(self, step: Tensor) -> "History":
        """The text with one more token (B,) a row."""
        written = None if self.written is None else [count + 1 for count in self.written]
        return replace(self, input_ids=torch.cat((self.input_ids, step[:, None]), dim=1), written=written)

    def select(self, rows: Sequence[int]) -> "History":
        """These rows, in this order, repeats allowed: for beams, and for settings that differ by row."""
        index = torch.tensor(rows, dtype=torch.long, device=self.input_ids.device)
        return replace(
            self,
            input_ids=self.input_ids[index],
            first=None if self.first is None else self.first[index],
            written=None if self.written is None else [self.written[row] for row in rows],
        )

    @property
    def written_counts(self) -> list[int]:
        """How many tokens were written in each row."""
        rows, length = self.input_ids.shape
        return [length - self.prompt_length] * rows if self.written is None else list(self.written)

    @property
    def lengths(self) -> list[int]:
        """The length of each row in columns, padding included, as transformers counts."""
        return [self.prompt_length + count for count in self.written_counts]

    @cached_property
    def tokens(self) -> Tensor:
        """The ids (B, T), NO_TOKEN for padding: a row then does not depend on the length of its batch mates."""
        if self.first is None:
            return self.input_ids
        return self.input_ids.masked_fill(self._columns < self.first[:, None], NO_TOKEN)

    @cached_property
    def prompt(self) -> Tensor:
        """The prompts (B, P), NO_TOKEN where there is none."""
        if self.written is None:
            return self.tokens[:, : self.prompt_length]
        return self.tokens.masked_fill(self._is_written, NO_TOKEN)

    @cached_property
    def continuation(self) -> Tensor:
        """The new tokens (B, T - P), NO_TOKEN where a row has none."""
        if self.written is None:
            return self.tokens[:, self.prompt_length :]
        return self.tokens.masked_fill(~self._is_written, NO_TOKEN)

    @property
    def _columns(self) -> Tensor:
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)

    @property
    def _is_written(self) -> Tensor:
        counts = torch.tensor(self.written_counts, device=self.input_ids.device)[:, None]
        return self._columns >= self.input_ids.shape[1] - counts


# Changes logits before the choice: (logits (B, V), history) -> (B, V).
LogitsProcessor = Callable[[Tensor, History], Tensor]
