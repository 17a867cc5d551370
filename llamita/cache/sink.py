"""A cache for texts without an end."""

import torch
from torch import Tensor

from llamita.cache.sliding import SlidingWindowCache


class SinkCache(SlidingWindowCache):
    """Keeps the first `sinks` tokens and what a window of the last still sees: StreamingLLM (arXiv:2309.17453).

    A full-attention model puts much weight on its first tokens and fails when they go. Positions are counted among
    the tokens that remain, so they never grow beyond `sinks + window`, and keys are stored un-rotated. A pass of
    several tokens sees all tokens that remain and itself: longer prompts are read in pieces.
    window: of the last tokens, the query's own included. Rows with padding on the left are refused: it would remain.
    """

    def __init__(self, window: int, *, sinks: int = 4) -> None:
        super().__init__(window, unrotated=True)
        self.sinks = sinks

    @property
    def most_stored(self) -> int:
        """The most tokens kept between passes."""
        return self.sinks + self.window - 1

    def relative_positions(self, positions: Tensor) -> Tensor:
        """Positions in the text (B, T) without those of the tokens dropped so far."""
        return positions - self.visible_range(0)[0]

    def append_positions(self, positions: Tensor) -> Tensor:
        """Append relative positions (B, T); returns those of the visible slots (B, S)."""
        in_sight = super().append_positions(positions)
        assert self.positions is not None
        dropped = in_sight.shape[1] - self.positions.shape[1]
        self.positions = torch.cat((self.positions[:, : self.sinks], self.positions[:, self.sinks :] - dropped), dim=1)
        return in_sight

    def mask_columns(self, padding: Tensor, queries: int) -> Tensor:
        """The columns of a mask (B, tokens so far) of the visible slots, the sinks included.

        Raises ValueError where a row has padding among the sinks.
        """
        if not bool(padding[:, : self.sinks].all()):
            raise ValueError(
                f"a sink cache keeps the first {self.sinks} slots, and a row has padding there: give rows of one length"
            )
        columns = super().mask_columns(padding, queries)
        return torch.cat((padding[:, : self.sinks], columns[:, self.sinks :]), dim=1)[:, : columns.shape[1]]

    def _trimmed(self, x: Tensor, dim: int) -> Tensor:
        dropped = max(0, x.shape[dim] - self.most_stored)
        if not dropped:
            return x
        last = x.narrow(dim, self.sinks + dropped, x.shape[dim] - self.sinks - dropped)
        return torch.cat((x.narrow(dim, 0, self.sinks), last), dim=dim)
