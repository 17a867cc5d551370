"""A generation under way: its steps, its result, and the acceptance rate of its drafts."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.generation.logprobs import TokenLogprob
from llamita.generation.outputs import ScoreRecorder
from llamita.generation.request import GenerationRequest
from llamita.generation.runner import ModelRunner
from llamita.generation.sequence import Sequence


@dataclass(kw_only=True)
class GenerationResult:
    """The result: tokens (B * returned, new), and what was recorded.

    beams: beam_indices (B * returned, new) and sequences_scores (B * returned,).
    """

    tokens: Tensor
    recorder: ScoreRecorder | None = None
    runner: ModelRunner | None = None
    beams: tuple[Tensor, Tensor] | None = None
    logprobs: list[list[TokenLogprob]] | None = None


@dataclass
class Acceptance:
    """Counts of speculation, summed over rows: tokens drafted, accepted and written, and passes of the model.

    limit: the most drafts of a row in a pass; 0 where drafting was off, as it slows a batch of that many rows down.
    """

    drafted: int = 0
    accepted: int = 0
    written: int = 0
    passes: int = 0
    limit: int = sys.maxsize

    @property
    def rate(self) -> float:
        """The share of the drafted tokens that were accepted; of a tree only one branch can be."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens written per row and pass; 1 is plain decoding."""
        return self.written / max(self.passes, 1)

    def count(self, *, drafted: int, accepted: int, written: int) -> None:
        """Add one row of one pass; an accepted token counts only if it was written."""
        self.drafted += drafted
        self.accepted += min(accepted, written)
        self.written += written
        self.passes += 1


@dataclass(kw_only=True, eq=False)
class Run:
    """A request under way: each of `steps` writes tokens; `result` gives the outcome after the last.

    sequences: one for each text; they grow with every step. acceptance: counts of speculation.
    """

    request: GenerationRequest
    sequences: list[Sequence]
    steps: Iterator[object]
    result: Callable[[], GenerationResult]
    acceptance: Acceptance | None = None

    def finish(self) -> GenerationResult:
        """Run all steps; returns the result."""
        with torch.no_grad():  # once, rather than at every step
            for _ in self.steps:
                pass
        return self.result()
