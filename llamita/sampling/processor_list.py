"""All that happens to logits before the draw, in one stated order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.mirostat import Mirostat
from llamita.sampling.params import SAMPLING, SamplingParams, merge
from llamita.sampling.per_row import check_rows
from llamita.sampling.processors import PROCESSORS, BatchSettings, with_top_k_and_p

LARGEST = 1e30  # of logits that settings raise: what is left to do to them, at most a division, stays finite


class LogitsProcessorList:
    """The stages that the settings ask for, in their order; with none the logits are handed through untouched.

    distribution: one for the batch, or one for each row. generators: those of the rows, which XTC draws from before
    the token is drawn; None draws from torch's global one. Raises UsageError for lists of the wrong length.

    Padding is no text here, so that a row is what it is alone; for transformers it is, but in the repetition penalty.
    """

    def __init__(
        self,
        distribution: SamplingParams | Sequence[SamplingParams],
        *,
        rows: int,
        device: torch.device | str = "cpu",
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        if not isinstance(distribution, SamplingParams):
            check_rows("distribution", distribution, rows)
        settings = distribution if isinstance(distribution, SamplingParams) else merge(distribution)
        settings.check_rows(rows)
        batch = BatchSettings(settings, rows, device, generators)
        steps = [(stage.name, step) for stage in PROCESSORS for step in stage.steps(batch)]
        self.names = tuple(dict.fromkeys(name for name, _ in steps))  # the stages that are on
        ready = with_top_k_and_p(steps, batch)
        is_bounded = settings.may_overflow
        self._steps = [_bounded(step) if is_bounded and name not in SAMPLING else step for name, step in ready]
        self._mirostat = next((step for step in self._steps if isinstance(step, Mirostat)), None)

    @property
    def reads_text(self) -> bool:
        """Whether a stage looks at more than the logits."""
        return any(name not in SAMPLING for name in self.names)

    @property
    def is_adaptive(self) -> bool:
        """Whether it must be told of every draw, one step at a time, which beams and speculation do not do."""
        return self._mirostat is not None

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """What to draw from, (B, V) -> (B, V); the very same tensor where nothing is on."""
        for step in self._steps:
            logits = step(logits, history)
        return logits

    def observe(self, logits: Tensor, tokens: Tensor) -> None:
        """Tell what was drawn, tokens (B,), from the logits (B, V) that the chain gave: mirostat goes by it."""
        if self._mirostat is not None:
            self._mirostat.observe(logits, tokens)


def _bounded(step: LogitsProcessor) -> LogitsProcessor:
    """A step whose logits are at most LARGEST; what it forbids stays forbidden."""
    return lambda logits, history: step(logits, history).clamp(max=LARGEST)
