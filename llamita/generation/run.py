"""A generation under way: its steps, what they come to, and how well guessing ahead goes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from llamita.generation.logprobs import TokenLogprob
from llamita.generation.outputs import ScoreRecorder
from llamita.generation.request import GenerationRequest
from llamita.generation.runner import ModelRunner
from llamita.generation.sequence import Sequence


@dataclass(kw_only=True)
class GenerationResult:
    """What was written: tokens (B * returned, new), and what was kept beside them.

    beams: beam_indices (B * returned, new) and sequences_scores (B * returned,).
    """

    tokens: Tensor
    recorder: ScoreRecorder | None = None
    runner: ModelRunner | None = None
    beams: tuple[Tensor, Tensor] | None = None
    logprobs: list[list[TokenLogprob]] | None = None


@dataclass
class Acceptance:
    """How well guessing went, summed over rows: tokens guessed, accepted and written, and passes of the model."""

    drafted: int = 0
    accepted: int = 0
    written: int = 0
    passes: int = 0

    @property
    def rate(self) -> float:
        """The share of the guessed tokens that were accepted; of a tree only one branch can be."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a row wrote for each pass it took part in; 1 is plain decoding."""
        return self.written / max(self.passes, 1)

    def count(self, *, drafted: int, accepted: int, written: int) -> None:
        """Count a row's part in a pass; of what was accepted only what was written."""
        self.drafted += drafted
        self.accepted += min(accepted, written)
        self.written += written
        self.passes += 1


@dataclass(kw_only=True, eq=False)
class Run:
    """A request at work: `steps` writes, step by step; `result` is what it came to, once they are over.

    sequences: one for each text, which grow as the steps go. acceptance: how well guessing ahead goes.
    """

    request: GenerationRequest
    sequences: list[Sequence]
    steps: Iterator[object]
    result: Callable[[], GenerationResult]
    acceptance: Acceptance | None = None

    def finish(self) -> GenerationResult:
        """Write to the end."""
        for _ in self.steps:
            pass
        return self.result()
