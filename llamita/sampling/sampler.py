"""From logits to tokens: apply the logits processors, then take the most probable token or draw one."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.batch_processors import BatchSettings
from llamita.sampling.finite import check_sums, multinomial, refuse
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.likelihoods import likelihoods
from llamita.sampling.mirostat import Mirostat, SurpriseLimit
from llamita.sampling.params import SAMPLING, SamplingParams, merge
from llamita.sampling.per_row import check_rows, listed
from llamita.sampling.processors import asked_for, with_top_k_and_p

Seed = int | Sequence[int] | Sequence[torch.Generator] | None
COMMON = frozenset(SAMPLING) - {"mirostat", "xtc_probability"}  # filters that read nothing but logits
BELOW_1 = 1 - 2**-52
SMALL = 4096  # tokens of a vocabulary, whose sums cost less than to look for those that may be drawn
FEW = 1 / 8  # of the vocabulary, up to which the tokens that may be drawn are taken out first
LARGEST = 1e30  # of logits raised by settings: later processors at most divide them, so they stay finite


# Takes a step's logits (B, V) as the model gave them, the scores (B, V) that were drawn from, and the tokens (B,).
Observer = Callable[[Tensor, Tensor, Tensor], object]


class LogitsProcessorList:
    """The logits processors that the settings ask for, in their order; without any, logits stay as they are.

    params: one for the batch, or one for each row. generators: those of the rows, which XTC draws from before the token
    is drawn; None draws from torch's global one. limits: the rows' states for mirostat, None for new ones. Raises
    UsageError for lists of the wrong length.

    Padding is no text here, so that a row is what it is alone; for transformers it is, but in the repetition penalty.
    """

    def __init__(
        self,
        params: SamplingParams | Sequence[SamplingParams],
        *,
        rows: int,
        device: torch.device | str = "cpu",
        generators: Sequence[torch.Generator] | None = None,
        limits: Sequence[SurpriseLimit] | None = None,
    ) -> None:
        if not isinstance(params, SamplingParams):
            check_rows("params", params, rows)
        settings = params if isinstance(params, SamplingParams) else merge(params)
        settings.check_rows(rows)
        batch = BatchSettings(settings, rows, device, generators, limits)
        asked = asked_for(batch)
        self.names = tuple(dict.fromkeys(name for name, _ in asked))
        is_bounded = settings.may_overflow
        self._processors = [
            _bounded(process) if is_bounded and name not in SAMPLING else process
            for name, process in with_top_k_and_p(asked, batch)
        ]
        self._mirostat = next((process for process in self._processors if isinstance(process, Mirostat)), None)

    @property
    def reads_text(self) -> bool:
        """Whether a processor reads more than the logits."""
        return any(name not in SAMPLING for name in self.names)

    @property
    def is_adaptive(self) -> bool:
        """Whether it must observe every draw, one step at a time, which beams and speculation do not do."""
        return self._mirostat is not None

    def __bool__(self) -> bool:
        return bool(self._processors)

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """Process logits (B, V) -> (B, V); returns the same tensor if no processor is on."""
        for process in self._processors:
            logits = process(logits, history)
        return logits

    def observe(self, logits: Tensor, tokens: Tensor) -> None:
        """Observe the tokens (B,) drawn from processed logits (B, V), for mirostat."""
        if self._mirostat is not None:
            self._mirostat.observe(logits, tokens)


def _bounded(process: LogitsProcessor) -> LogitsProcessor:
    """A processor whose logits are clamped to LARGEST; forbidden tokens stay forbidden."""
    return lambda logits, history: process(logits, history).clamp(max=LARGEST)


class StatefulProcessor(Protocol):
    """Changes logits by a state of its own, which follows the text token by token: guidance, constraints."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Changed logits (B, V)."""
        ...

    def append(self, step: Tensor) -> None:
        """Append the tokens (B,) of a step, with padding in rows that have ended."""
        ...


class Sampler:
    """Chooses the next token of every row, and keeps the history if a setting reads it.

    settings: one for the batch, or one for each row. history: the prompts. seed: None draws from torch's global
    generator; a number seeds every row alike, a list each row by itself, generators are taken as they are.
    processors: change the logits before the settings do, in this order. observers: see every step.
    """

    def __init__(
        self,
        settings: SamplingParams | Sequence[SamplingParams],
        history: History,
        *,
        seed: Seed = None,
        limits: Sequence[SurpriseLimit] | None = None,
        processors: Sequence[StatefulProcessor] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        rows, device = len(history.input_ids), history.input_ids.device
        settings = settings if isinstance(settings, SamplingParams) else merge(settings)
        self.history = history
        self.processors, self.observers = tuple(processors), tuple(observers)
        self.generators = generators(seed, rows, device)
        self.logits_processors = LogitsProcessorList(
            settings, rows=rows, device=device, generators=self.generators, limits=limits
        )
        self._reads_text = self.logits_processors.reads_text
        self._greedy = greedy = greedy_rows(settings, rows)
        self._is_greedy, self._is_mixed = all(greedy), any(greedy) and not all(greedy)
        self.filters = self._filters(settings)

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) for logits (B, V) in fp32."""
        scores = logits
        for processor in self.processors:
            scores = processor(scores)
        scores = self.logits_processors(scores, self.history)
        tokens = self._chosen(scores)
        self.logits_processors.observe(scores, tokens)
        for observe in self.observers:
            observe(logits, scores, tokens)
        return tokens

    def append(self, step: Tensor) -> None:
        """Append the tokens (B,) of a step, with padding in rows that have ended."""
        if self._reads_text:
            self.history = self.history.append(step)
        for processor in self.processors:
            processor.append(step)

    def _filters(self, settings: SamplingParams) -> tuple[float, ...] | None:
        """The settings of its filters, if these and the row's generator are all that a choice depends on.

        Empty where it takes the most probable token; None where a choice depends on more, or something observes it.
        """
        if self.processors or self.observers or not set(self.logits_processors.names) <= COMMON:
            return None
        if self._is_greedy:
            return () if not self.logits_processors else None
        values = [getattr(settings, name) for name in SAMPLING]
        are_numbers = all(value is None or isinstance(value, int | float) for value in values)
        return tuple(values) if self.generators is not None and are_numbers else None

    def _chosen(self, scores: Tensor) -> Tensor:
        if self._is_greedy:
            return best(scores)
        drawn = draw(scores, self.generators)
        if not self._is_mixed:
            return drawn
        return torch.where(torch.tensor(self._greedy, device=drawn.device), best(scores), drawn)


def best(scores: Tensor) -> Tensor:
    """The most probable token of each row, the first of several: (B, V) -> (B,)."""
    if scores.is_cpu and scores.dtype == torch.float32 and not scores.requires_grad:
        return torch.from_numpy(scores.numpy().argmax(-1))  # in one thread, and in less time than torch
    return scores.argmax(-1)


def greedy_rows(settings: SamplingParams, rows: int) -> list[bool]:
    """Which rows are greedy: those that do not sample, or sample at temperature 0."""
    return [not settings.do_sample or one == 0 for one in listed(settings.temperature, rows, off=1.0)]


def draw(logits: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """One token a row by its probability: (B, V) -> (B,).

    With generators each row is drawn alone from its own, so that its batch mates do not matter. Without, the whole
    batch is drawn from torch's global one, which gives transformers' samples under the same seed.
    """
    if generators is None:
        return multinomial(logits.softmax(-1))[:, 0]
    likely = likelihoods(logits)
    if len(generators) == 1:
        return pick(likely[0], generators[0])
    if not likely.is_cpu:
        rows = zip(likely, generators, strict=True)
        return torch.cat([pick(row, generator) for row, generator in rows])
    numbers = [torch.rand(1, dtype=torch.float64, generator=one, device="cpu").item() for one in generators]
    is_left = likely.numpy() > 0
    if likely.shape[-1] <= SMALL or np.count_nonzero(is_left) > FEW * is_left.size:
        reached = likely.cumsum(-1, dtype=torch.float64).numpy()
        chosen = [_found(sums, number) for sums, number in zip(reached, numbers, strict=True)]
    else:
        chosen = [_found_in_few(*one) for one in zip(likely.numpy(), is_left, numbers, strict=True)]
    return torch.tensor(chosen, device="cpu")


def pick(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """A token (1,) by probabilities (V,), whose sum need not be 1, and one random number.

    torch.multinomial draws a number for every token of the vocabulary, which takes longer than all the rest.
    Raises UsageError where there is no token to draw.
    """
    reached = probabilities.cumsum(0, dtype=torch.float64)
    number = torch.rand(1, dtype=torch.float64, generator=generator, device=probabilities.device)
    # Without the last factor a product could be rounded up to the sum, where there is no token.
    if reached.is_cpu:  # the same search in fewer calls
        return torch.tensor([_found(reached.numpy(), number.item())], device="cpu")
    check_sums(reached[-1:])
    return torch.searchsorted(reached, number * reached[-1] * BELOW_1, right=True)


def _found(sums: np.ndarray, number: float) -> int:
    """The token at a random number's share of the sums (V,)."""
    if not 0 < sums[-1] < math.inf:
        refuse()
    return int(sums.searchsorted(number * sums[-1] * BELOW_1, "right"))


def _found_in_few(weights: np.ndarray, is_left: np.ndarray, number: float) -> int:
    """The token at a random number's share of a row (V,) of which most are 0: these add nothing to the same sums."""
    at = is_left.nonzero()[0]
    if not len(at):
        refuse()
    return int(at[_found(weights[at].cumsum(dtype=np.float64), number)])


def generators(seed: Seed, rows: int, device: torch.device | str) -> list[torch.Generator] | None:
    """A random generator for each row, or None for torch's global one; raises UsageError for other seeds than rows."""
    return None if seed is None else [_seeded(number, device) for number in seeds_of(seed, rows)]


def seeds_of(seed: Any, rows: int) -> list[Any]:
    """The seed of each row; raises UsageError for other seeds than rows."""
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * rows
    if len(seeds) != rows:
        raise UsageError(f"seed lists {len(seeds)} numbers for {rows} rows: give one for each, or one for all")
    return seeds


def _seeded(number: int | torch.Generator, device: torch.device | str) -> torch.Generator:
    if isinstance(number, torch.Generator):
        return number
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**64:
        raise UsageError(f"seed is {number!r}: it must be a whole number that fits in 64 bits")
    return torch.Generator(device=device).manual_seed(number)
