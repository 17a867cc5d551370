"""From logits to tokens: the draw, and the plain filters before it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.filters import keep_top_k, keep_top_p, scale
from llamita.generation.per_row import PerRow, check, check_rows, listed


def draw(logits: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """One token a row by its probability: (B, V) -> (B,).

    With generators each row is drawn alone from its own, so that its batch mates do not matter. Without, the whole
    batch is drawn from torch's global one, which gives transformers' samples under the same seed.
    """
    probabilities = logits.softmax(-1)
    if generators is None:
        return torch.multinomial(probabilities, 1)[:, 0]
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


class Sampler:
    """Chooses the next token of every row; seeded rows have a random generator of their own.

    Each setting is one number or one a row. `temperature` 0 takes the likeliest token, `top_k` 0 and `top_p` 1 keep
    all. `seed`: None draws from torch's global generator; a number seeds every row alike, a list each row by itself.
    """

    def __init__(
        self,
        rows: int,
        *,
        temperature: PerRow = 1.0,
        top_k: PerRow = 0,
        top_p: PerRow = 1.0,
        seed: int | Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
            check_rows(name, value, rows)
        check("temperature", temperature, low=0.0, high=math.inf, remedy="give 0 or more, 0 is greedy")
        check("top_k", top_k, low=0, high=math.inf, remedy="give a count of tokens, 0 keeps all")
        check("top_p", top_p, low=0.0, high=1.0, remedy="give a share from 0 to 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._greedy = torch.tensor([t == 0 for t in listed(temperature, rows, off=1.0)], device=device)  # (B,)
        self._is_greedy = bool(self._greedy.all())
        self._is_mixed = not self._is_greedy and bool(self._greedy.any())
        self._generators = None if seed is None else [_seeded(number, device) for number in _seeds(seed, rows)]

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) for logits (B, V) in fp32."""
        if self._is_greedy:
            return logits.argmax(-1)
        drawn = draw(self.filtered(logits), self._generators)
        return torch.where(self._greedy, logits.argmax(-1), drawn) if self._is_mixed else drawn

    def filtered(self, logits: Tensor) -> Tensor:
        """The logits after temperature, top-k and top-p, in this order."""
        return keep_top_p(keep_top_k(scale(logits, self.temperature), self.top_k), self.top_p)


def _seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    if isinstance(seed, int):
        return [seed] * rows
    if len(seed) != rows:
        raise UsageError(f"seed lists {len(seed)} numbers for {rows} rows: give one for each, or one for all")
    return list(seed)


def _seeded(number: int, device: torch.device | str) -> torch.Generator:
    if not -(2**63) <= number < 2**64:
        raise UsageError(f"seed is {number}: it must fit in 64 bits")
    return torch.Generator(device=device).manual_seed(number)
