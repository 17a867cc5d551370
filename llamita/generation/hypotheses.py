"""Continuations of a prompt side by side, as tensors."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1.0e9  # transformers' score of what must not be chosen: finite, so that sums and comparisons stay defined


@dataclass
class Hypotheses:
    """Continuations of each prompt, n side by side.

    tokens: (B, n, limit), filled behind the end. origins: (B, n, limit), the row of the batch of B * beams in which
    each token was chosen, -1 behind the end. scores: (B, n) fp32. ended: (B, n) bool.
    """

    tokens: Tensor
    origins: Tensor
    scores: Tensor
    ended: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int], *, fill: int, device: torch.device) -> "Hypotheses":
        """Nothing written yet, in (B, n, limit) places, and a score that anything beats."""
        tokens = torch.full(shape, fill, device=device)
        scores = torch.full(shape[:2], NEVER, device=device)
        origins = torch.full_like(tokens, -1, dtype=torch.int32)  # transformers' dtype
        return cls(tokens, origins, scores, torch.zeros_like(scores, dtype=torch.bool))

    def longer(self, room: int, *, fill: int) -> "Hypotheses":
        """The same with room for so many tokens."""
        more = (0, room - self.tokens.shape[2])
        tokens, origins = F.pad(self.tokens, more, value=fill), F.pad(self.origins, more, value=-1)
        return Hypotheses(tokens, origins, self.scores, self.ended)

    def take(self, index: Tensor) -> "Hypotheses":
        """Of each prompt those numbered by index (B, m), in this order."""
        flat = (torch.take_along_dim(x, index, dim=1) for x in (self.scores, self.ended))
        deep = (torch.take_along_dim(x, index[..., None], dim=1) for x in (self.tokens, self.origins))
        return Hypotheses(*deep, *flat)

    def beside(self, other: "Hypotheses") -> "Hypotheses":
        """These and the others of each prompt."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Hypotheses(*(torch.cat(pair, dim=1) for pair in pairs))

    def lengths(self) -> Tensor:
        """How many tokens each has: (B, n)."""
        return (self.origins >= 0).sum(-1)
