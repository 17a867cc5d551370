"""Choose tokens for some rows of a batch and not for others, as speculative decoding needs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.sampling.finite import multinomial
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.sampler import pick


class TokenSelector:
    """Chooses tokens: processes the logits, then takes the most probable token or draws one.

    process: (logits (B, V), history) -> (B, V), a function of these alone; None changes nothing. greedy: for all rows
    or for each. generators: one a row, or None for torch's global one.
    """

    def __init__(
        self,
        rows: int,
        *,
        process: LogitsProcessor | None = None,
        greedy: bool | Sequence[bool] = True,
        generators: Sequence[torch.Generator] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.process = process
        self.greedy = torch.tensor([greedy] * rows if isinstance(greedy, bool) else list(greedy), device=device)
        self.is_greedy = bool(self.greedy.all())
        self.generators = generators

    @property
    def is_plain(self) -> bool:
        """Whether it takes the most probable token of unprocessed logits."""
        return self.is_greedy and self.process is None

    def scores(self, logits: Tensor, history: History | None) -> Tensor:
        """Process logits (B, V) in fp32; history: read by the process."""
        if self.process is None:
            return logits.float()
        assert history is not None
        return self.process(logits.float(), history)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities (B, V) of scores (B, V); greedy rows have all of it on one token."""
        if self.is_greedy:
            return _only(scores.argmax(-1), scores)
        drawn = scores.softmax(-1)
        return torch.where(self.greedy[:, None], _only(scores.argmax(-1), scores), drawn)

    def draw(self, probabilities: Tensor, among: Tensor) -> Tensor:
        """A token (B,) for each row by probabilities (B, V); only the rows `among` (B,) use up random numbers."""
        tokens = probabilities.argmax(-1)
        if self.is_greedy:
            return tokens
        rows = (among & ~self.greedy).nonzero()[:, 0]
        if self.generators is None:
            if len(rows):
                tokens[rows] = multinomial(probabilities[rows])[:, 0]
            return tokens
        for row in rows.tolist():
            tokens[row] = pick(probabilities[row], self.generators[row])
        return tokens

    def uniform(self, among: Tensor) -> Tensor:
        """A number (B,) below 1 for each row; only the rows `among` (B,) use up random numbers."""
        numbers = torch.zeros(len(among), dtype=torch.float32, device=among.device)
        rows = (among & ~self.greedy).nonzero()[:, 0]
        if self.generators is None:
            numbers[rows] = torch.rand(len(rows), dtype=torch.float32, device=among.device)
            return numbers
        for row in rows.tolist():
            own = self.generators[row]
            numbers[row] = torch.rand((), dtype=torch.float32, generator=own, device=among.device)
        return numbers


def _only(tokens: Tensor, like: Tensor) -> Tensor:
    """All probability on one token a row: (B,) -> (B, V)."""
    return torch.zeros_like(like).scatter_(1, tokens[:, None], 1.0)
