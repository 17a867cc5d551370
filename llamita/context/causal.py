"""A pass over whole sequences: training and scoring."""

from copy import copy
from typing import Self

from torch import Tensor

from llamita.attention import Backend
from llamita.attention.mask import Mask
from llamita.context.protocol import Rotation


class Causal:
    """Every token attends to the tokens of this pass that its mask shows; nothing is stored.

    positions: (B, T). scale: the factor on the scores. dropout: of the attention weights, 0 outside training.
    """

    cache = None

    def __init__(self, positions: Tensor, mask: Mask, *, backend: Backend, scale: float, dropout: float = 0.0) -> None:
        self.positions = positions
        self.mask = mask
        self.backend = backend
        self.scale = scale
        self.dropout = dropout

    def by(self, backend: Backend) -> Self:
        """The same context by another backend."""
        other = copy(self)
        other.backend = backend
        return other

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Rotate and attend: q (B, T, N, H), k and v (B, T, K, H) -> (B, T, N, H)."""
        keys, values = self.store(k, v, rotation, layer)
        return self.attend_to(rotation(q).transpose(1, 2), keys, values)

    def store(self, k: Tensor, v: Tensor, rotation: Rotation, layer: int) -> tuple[Tensor, Tensor]:
        """The rotated keys and the values to attend to: (B, T, K, H) -> (B, K, S, H)."""
        return rotation(k).transpose(1, 2), v.transpose(1, 2)

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention proper, by the chosen backend: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H)."""
        return self.backend(q, k, v, self.mask, scale=self.scale, dropout=self.dropout)
