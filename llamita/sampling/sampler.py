"""From logits to tokens: what the settings make of them, then the likeliest or a draw."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.guidance import Guidance
from llamita.generation.outputs import ScoreRecorder
from llamita.sampling.finite import check_sums, multinomial, refuse
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams, merge
from llamita.sampling.per_row import listed
from llamita.sampling.processor_list import LogitsProcessorList
from llamita.structured.grammar import Constraints

Seed = int | Sequence[int] | None
BELOW_1 = 1 - 2**-52


class Sampler:
    """Chooses the next token of every row, and remembers the text where a setting looks at it.

    settings: one for the batch, or one for each row. history: the prompts. seed: None draws from torch's global
    generator; a number seeds every row alike, a list each row by itself.
    guidance, constraints: steer the logits before the settings do. record: keeps logits and scores of every step.
    """

    def __init__(
        self,
        settings: SamplingParams | Sequence[SamplingParams],
        history: History,
        *,
        seed: Seed = None,
        guidance: Guidance | None = None,
        constraints: Constraints | None = None,
        record: ScoreRecorder | None = None,
    ) -> None:
        rows, device = len(history.input_ids), history.input_ids.device
        settings = settings if isinstance(settings, SamplingParams) else merge(settings)
        self.history = history
        self.guidance, self.constraints, self.record = guidance, constraints, record
        self.generators = generators(seed, rows, device)
        self.chain = LogitsProcessorList(settings, rows=rows, device=device, generators=self.generators)
        self._reads_text = self.chain.reads_text
        greedy = greedy_rows(settings, rows)
        self._greedy = torch.tensor(greedy, device=device)  # (B,)
        self._is_greedy, self._is_mixed = all(greedy), any(greedy) and not all(greedy)

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) for logits (B, V) in fp32."""
        scores = logits if self.guidance is None else self.guidance(logits)
        if self.constraints is not None:
            scores = self.constraints.mask(scores)
        scores = self.chain(scores, self.history)
        tokens = self._chosen(scores)
        self.chain.observe(scores, tokens)
        if self.record is not None:
            self.record.add(logits, scores)
        return tokens

    def append(self, step: Tensor) -> None:
        """Take the tokens (B,) that the rows went on by, padding in those that have ended."""
        if self._reads_text:
            self.history = self.history.append(step)
        if self.constraints is not None:
            self.constraints.accept(step)
        if self.guidance is not None:
            self.guidance.append(step)

    def _chosen(self, scores: Tensor) -> Tensor:
        if self._is_greedy:
            return scores.argmax(-1)
        drawn = draw(scores, self.generators)
        return torch.where(self._greedy, scores.argmax(-1), drawn) if self._is_mixed else drawn


def greedy_rows(settings: SamplingParams, rows: int) -> list[bool]:
    """Which rows take the likeliest token: those that do not sample, or at temperature 0."""
    return [not settings.do_sample or one == 0 for one in listed(settings.temperature, rows, off=1.0)]


def draw(logits: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """One token a row by its probability: (B, V) -> (B,).

    With generators each row is drawn alone from its own, so that its batch mates do not matter. Without, the whole
    batch is drawn from torch's global one, which gives transformers' samples under the same seed.
    """
    probabilities = logits.softmax(-1)
    if generators is None:
        return multinomial(probabilities)[:, 0]
    if len(generators) == 1:
        return pick(probabilities[0], generators[0])
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([pick(row, generator) for row, generator in rows])


def pick(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """A token (1,) by probabilities (V,), whose sum need not be 1, and one random number.

    torch.multinomial draws a number for every token of the vocabulary, which takes longer than all the rest.
    Raises UsageError where there is no token to draw.
    """
    reached = probabilities.cumsum(0, dtype=torch.float64)
    number = torch.rand(1, dtype=torch.float64, generator=generator, device=probabilities.device)
    # Without the last factor a product could be rounded up to the sum, where there is no token.
    if reached.is_cpu:  # the same search in fewer calls
        sums = reached.numpy()
        if not 0 < sums[-1] < math.inf:
            refuse()
        return torch.tensor([sums.searchsorted(number.item() * sums[-1] * BELOW_1, "right")])
    check_sums(reached[-1:])
    return torch.searchsorted(reached, number * reached[-1] * BELOW_1, right=True)


def generators(seed: Seed, rows: int, device: torch.device | str) -> list[torch.Generator] | None:
    """A random generator for each row, or None for torch's global one; raises UsageError for other seeds than rows."""
    if seed is None:
        return None
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * rows
    if len(seeds) != rows:
        raise UsageError(f"seed lists {len(seeds)} numbers for {rows} rows: give one for each, or one for all")
    return [_seeded(number, device) for number in seeds]


def _seeded(number: int, device: torch.device | str) -> torch.Generator:
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**64:
        raise UsageError(f"seed is {number!r}: it must be a whole number that fits in 64 bits")
    return torch.Generator(device=device).manual_seed(number)
