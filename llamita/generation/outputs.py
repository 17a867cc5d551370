"""Outputs of generation: transformers' records by their names, and the recorders of scores and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.model.outputs import ModelOutput


@dataclass(repr=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """sequences (B, T + new); the rest, where asked for, one a step.

    scores: logits after the processors, (B, V) fp32; logits: as the model gave them. attentions, hidden_states:
    one a layer, (B, N, T, S) and (B, T, D). acceptance: counts of speculation (`run.Acceptance`).
    logprobs: of the tokens of each text, if asked for (`logprobs.TokenLogprob`).
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None
    acceptance: Any = None
    logprobs: Any = None


@dataclass(repr=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """sequences (B * returned, T + new) and their sequences_scores (B * returned,), the best of each prompt first.

    scores: log probabilities as they were chosen from, (B * beams, V) fp32, one a step; logits: as the model gave
    them. beam_indices: (B * returned, new), the row of `scores` that each token was chosen in, -1 after the end.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None


class ScoreRecorder:
    """Records `scores` and `logits` of every step, or neither."""

    def __init__(self, *, scores: bool = False, logits: bool = False) -> None:
        self._scores: list[Tensor] | None = [] if scores else None
        self._logits: list[Tensor] | None = [] if logits else None

    def __call__(self, logits: Tensor, scores: Tensor, tokens: Tensor | None = None) -> None:
        """Record a step: logits as the model gave them, and after the processors, (B, V) each."""
        for steps, new in ((self._logits, logits), (self._scores, scores)):
            if steps is not None:
                steps.append(new.clone())

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self._scores is not None or self._logits is not None

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """One (B, V) a step, or None where not asked for."""
        return None if self._scores is None else tuple(self._scores)

    @property
    def logits(self) -> tuple[Tensor, ...] | None:
        """One (B, V) a step, or None where not asked for."""
        return None if self._logits is None else tuple(self._logits)


class RaggedScoreRecorder:
    """Records logits and scores of rows that grow at different speeds; `close` aligns them by step."""

    def __init__(self, rows: int, record: ScoreRecorder) -> None:
        self._rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
        self._record = record

    def add(self, logits: Tensor, scores: Tensor, among: Tensor) -> None:
        """Record logits and scores (B, V) of the next token of the rows `among` (B,)."""
        for row in among.nonzero()[:, 0].tolist():
            self._rows[row].append((logits[row], scores[row]))

    def close(self, lengths: Sequence[int]) -> None:
        """Pass on one step (B, V) per token; lengths: tokens of each row, after which come zeros."""
        blank = next((torch.zeros_like(steps[0][0]) for steps in self._rows if steps), None)
        for step in range(max(lengths, default=0)):
            assert blank is not None
            pairs = zip(self._rows, lengths, strict=True)
            taken = [steps[step] if step < length else (blank, blank) for steps, length in pairs]
            logits, scores = (torch.stack(column) for column in zip(*taken, strict=True))
            self._record(logits, scores)


def side_by_side(rows: Sequence[Sequence[int]], *, fill: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of token ids as one tensor (B, longest), filled on the right with `fill`."""
    longest = max(map(len, rows), default=0)
    padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), longest)
