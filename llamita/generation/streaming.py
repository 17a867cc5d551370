"""Streaming of rows that grow at different speeds, one column at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ColumnStreamer:
    """Sends tokens column by column, each when every row has its token or has ended.

    send: receives the tokens (B,) of a column. fill: the token after the end of a row.
    """

    def __init__(self, rows: int, send: Callable[[Tensor], None], *, fill: int) -> None:
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._send = send
        self._fill = fill
        self._sent = 0

    def push(self, new: Sequence[Sequence[int]], are_over: Sequence[bool]) -> None:
        """Append the new tokens of each row, possibly none; are_over: which rows have ended."""
        for row, tokens in zip(self._rows, new, strict=True):
            row.extend(tokens)
        growing = [len(row) for row, is_over in zip(self._rows, are_over, strict=True) if not is_over]
        for column in range(self._sent, min(growing, default=max(map(len, self._rows)))):
            step = [row[column] if column < len(row) else self._fill for row in self._rows]
            self._send(torch.tensor(step, device="cpu"))
            self._sent = column + 1
