"""Mirostat 2: a limit of surprise that follows the drawn tokens (arXiv:2007.14966)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.sampling.history import History
from llamita.sampling.per_row import PerRow, listed

MOST = 1e15


@dataclass
class SurpriseLimit:
    """Mirostat's state of one row. mu: its limit of surprise in bits, None before its first token."""

    mu: Tensor | None = None


class Mirostat:
    """Keeps the surprise of every row near its target; each draw moves the limit.

    tau: the target in bits a token. eta: how fast the limit follows. mode: 2 for on and 0 for off. limits: the state of
    each row, which goes on from where it is; at first 2 tau, and infinite in rows where mirostat is off.
    """

    def __init__(
        self,
        rows: int,
        *,
        mode: PerRow,
        tau: PerRow,
        eta: PerRow,
        device: torch.device | str,
        limits: Sequence[SurpriseLimit] | None = None,
    ) -> None:
        on = [one == 2 for one in listed(mode, rows)]
        # No token has more bits than this; finite, so that no limit becomes NaN.
        targets = zip(on, [min(one, MOST) for one in listed(tau, rows)], strict=True)
        most = [one if is_on else math.inf for is_on, one in targets]
        self.tau = torch.tensor(most, dtype=torch.float32, device=device)
        self.eta = torch.tensor([min(one, MOST) for one in listed(eta, rows)], dtype=self.tau.dtype, device=device)
        self.limits = [SurpriseLimit() for _ in range(rows)] if limits is None else limits
        for limit, first in zip(self.limits, 2 * self.tau, strict=True):
            limit.mu = first if limit.mu is None else limit.mu

    @property
    def mu(self) -> Tensor:
        """The limits (B,)."""
        return torch.stack([limit.mu for limit in self.limits if limit.mu is not None])

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """Remove tokens above the limit of surprise; the most probable always stays. The history is not read."""
        return keep_unsurprising(logits, self.mu)

    def observe(self, logits: Tensor, tokens: Tensor) -> None:
        """Move the limits by the surprise of the tokens (B,) drawn from logits (B, V)."""
        error, mu = surprise(logits, tokens) - self.tau, self.mu
        for limit, moved in zip(self.limits, torch.where(mu.isinf(), mu, mu - self.eta * error), strict=True):
            limit.mu = moved


def keep_unsurprising(logits: Tensor, limit: Tensor) -> Tensor:
    """Remove tokens of more than `limit` (B,) bits of surprise; the most probable always stays."""
    removed = -logits.log_softmax(-1) / math.log(2) > limit[:, None]
    return logits.masked_fill(removed.scatter(-1, logits.argmax(-1, keepdim=True), False), -math.inf)


def surprise(logits: Tensor, tokens: Tensor) -> Tensor:
    """How surprising the tokens (B,) are under logits (B, V), in bits."""
    return -logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0] / math.log(2)
