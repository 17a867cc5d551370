"""Rows that grow unequally, told of in step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ColumnStreamer:
    """Tells of the tokens of some rows column by column: each as soon as all rows have it, or have ended before.

    tell: takes the tokens (B,) of a step. fill: stands behind the end of a row.
    """

    def __init__(self, rows: int, tell: Callable[[Tensor], None], *, fill: int) -> None:
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._tell = tell
        self._fill = fill
        self._sent = 0

    def push(self, new: Sequence[Sequence[int]], are_over: Sequence[bool]) -> None:
        """Take the new tokens of each row, none of them for some, and which rows have ended."""
        for row, tokens in zip(self._rows, new, strict=True):
            row.extend(tokens)
        growing = [len(row) for row, is_over in zip(self._rows, are_over, strict=True) if not is_over]
        for column in range(self._sent, min(growing, default=max(map(len, self._rows)))):
            self._tell(torch.tensor([row[column] if column < len(row) else self._fill for row in self._rows]))
            self._sent = column + 1
