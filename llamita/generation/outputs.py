"""What generation returns beside the tokens: records by transformers' names, and the scores of its choices."""

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

    scores: logits as they were chosen from, (B, V) fp32; logits: as the model gave them. attentions, hidden_states:
    one a layer, (B, N, T, S) and (B, T, D). acceptance: how well guessing ahead went (`run.Acceptance`).
    logprobs: of each text its tokens', where that was asked for (`logprobs.TokenLogprob`).
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
    them. beam_indices: (B * returned, new), the row of `scores` that each token was chosen in, -1 behind the end.
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
    """What is kept of every step for the output: `scores`, `logits`, or neither."""

    def __init__(self, *, scores: bool = False, logits: bool = False) -> None:
        self._scores: list[Tensor] | None = [] if scores else None
        self._logits: list[Tensor] | None = [] if logits else None

    def __call__(self, logits: Tensor, scores: Tensor, tokens: Tensor | None = None) -> None:
        """Keep a step's logits as the model gave them and as they were chosen from, (B, V) each."""
        for steps, new in ((self._logits, logits), (self._scores, scores)):
            if steps is not None:
                steps.append(new.clone())

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
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
    """The record of rows that grow unequally: logits and scores of each row's tokens, brought into step at the end."""

    def __init__(self, rows: int, record: ScoreRecorder) -> None:
        self._rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
        self._record = record

    def add(self, logits: Tensor, scores: Tensor, among: Tensor) -> None:
        """Keep logits and scores (B, V) of the next token of the rows `among` (B,)."""
        for row in among.nonzero()[:, 0].tolist():
            self._rows[row].append((logits[row], scores[row]))

    def close(self, lengths: Sequence[int]) -> None:
        """Hand the record a step (B, V) for each token, of rows that took so many; zeros behind a row's end."""
        blank = next((torch.zeros_like(steps[0][0]) for steps in self._rows if steps), None)
        for step in range(max(lengths, default=0)):
            assert blank is not None
            pairs = zip(self._rows, lengths, strict=True)
            taken = [steps[step] if step < length else (blank, blank) for steps, length in pairs]
            logits, scores = (torch.stack(column) for column in zip(*taken, strict=True))
            self._record(logits, scores)


def side_by_side(rows: Sequence[Sequence[int]], *, fill: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of token ids as one tensor (B, longest), `fill` behind the shorter ones."""
    longest = max(map(len, rows), default=0)
    padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), longest)


def compute_transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of every token that was written, (B, new): 0 behind the end of a beam.

    sequences: (B, T + new). scores: (rows, V) a step. beam_indices: (B, new), the row of each token; None where rows
    stayed in their places. normalize_logits: make log probabilities of the scores first.
    """
    if beam_indices is None:
        rows = torch.arange(scores[0].shape[0], device=sequences.device)
        beam_indices = rows[:, None].expand(-1, len(scores))
    ended = beam_indices < 0  # (B, new)
    longest = int((~ended).sum(-1).max())
    ended, rows = ended[:, :longest], beam_indices[:, :longest].clamp(min=0).long()
    written = sequences[:, sequences.shape[1] - longest :]
    columns = []
    for step in range(longest):
        table = scores[step].log_softmax(-1) if normalize_logits else scores[step]
        columns.append(table[rows[:, step], written[:, step]])
    return torch.stack(columns, dim=1).masked_fill(ended, 0.0)
