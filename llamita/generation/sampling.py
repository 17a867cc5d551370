"""From logits to tokens: pure functions, one after another, each (B, V) -> (B, V), and the draw at their end."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.errors import UsageError

PerRow = float | Sequence[float] | Tensor  # one number for all rows, or one for each


def scale(logits: Tensor, temperature: PerRow) -> Tensor:
    """Divide by the temperature: below 1 the likely gets likelier, above 1 all come closer."""
    return logits / _column(temperature, logits)


def keep_top_k(logits: Tensor, top_k: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Remove what is less likely than the k-th likeliest (ties with it stay); 0 keeps everything."""
    vocabulary = logits.shape[-1]
    counts = [_bounded(int(k), min_tokens_to_keep, vocabulary) for k in _listed(top_k, logits.shape[0])]
    likeliest = logits.topk(max(counts)).values  # (B, K)
    last = torch.tensor(counts, device=logits.device)[:, None] - 1
    return logits.masked_fill(logits < likeliest.gather(-1, last), -math.inf)


def keep_top_p(logits: Tensor, top_p: PerRow, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p (arXiv:1904.09751).

    Of equal tokens at the border the sort decides; it runs upwards, as in transformers, whose choice it is.
    """
    ascending, order = logits.sort()
    reached = ascending.softmax(-1).cumsum(-1)
    rest = 1 - top_p if isinstance(top_p, int | float) else [1 - p for p in _listed(top_p, logits.shape[0])]
    removed = reached <= _column(rest, logits)
    removed[..., -min_tokens_to_keep:] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


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
        _check("temperature", temperature, rows, low=0.0, high=math.inf, remedy="give 0 or more, 0 is greedy")
        _check("top_k", top_k, rows, low=0, high=math.inf, remedy="give a count of tokens, 0 keeps all")
        _check("top_p", top_p, rows, low=0.0, high=1.0, remedy="give a share from 0 to 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._greedy = torch.tensor([t == 0 for t in _listed(temperature, rows)], device=device)  # (B,)
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
        if self._is_mixed:  # greedy rows do not draw: any temperature will do
            listed = _listed(self.temperature, logits.shape[0])
            logits = scale(logits, [t or 1.0 for t in listed])
        elif not _all(self.temperature, 1.0):
            logits = scale(logits, self.temperature)
        if not _all(self.top_k, 0):
            logits = keep_top_k(logits, self.top_k)
        if not _all(self.top_p, 1.0):
            logits = keep_top_p(logits, self.top_p)
        return logits


def _listed(value: PerRow, rows: int) -> list[float]:
    values = value.tolist() if isinstance(value, Tensor) else value
    return list(values) if isinstance(values, Sequence) else [values] * rows


def _column(value: PerRow, logits: Tensor) -> float | Tensor:
    """A number as it is, numbers as (B, 1): the division and comparison then round as transformers' do."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, int | float):
        return value
    return torch.as_tensor(value, dtype=torch.float64).to(logits)[:, None]


def _bounded(top_k: int, least: int, vocabulary: int) -> int:
    return vocabulary if top_k == 0 else min(max(top_k, least), vocabulary)


def _all(value: PerRow, neutral: float) -> bool:
    return all(one == neutral for one in _listed(value, 1))


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


def _check(name: str, value: PerRow, rows: int, *, low: float, high: float, remedy: str) -> None:
    values = _listed(value, rows)
    if len(values) != rows:
        raise UsageError(f"{name} lists {len(values)} numbers for {rows} rows: give one for each, or one for all")
    for one in values:
        is_number = isinstance(one, int | float) and not isinstance(one, bool)
        if not is_number or not low <= one <= high or one == math.inf:
            raise UsageError(f"{name} is {one!r}: {remedy}")
