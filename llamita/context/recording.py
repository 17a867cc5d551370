"""Attention weights on demand, from any backend."""

from collections.abc import Collection

from torch import Tensor

from llamita.attention import eager
from llamita.context.causal import Causal
from llamita.context.protocol import Rotation


class Recording:
    """Passes everything on to another context and keeps the attention weights of chosen layers.

    The outputs stay those of the inner context's backend, in every layer. The weights are computed a second time, by
    the reference (eager). Only where the backend is eager are they the weights used, and carry gradients.
    layers: which to record, None for all.
    """

    def __init__(self, inner: Causal, layers: Collection[int] | None = None) -> None:
        self.inner = inner
        self.layers = layers
        self.cache = inner.cache
        self.positions = inner.positions
        self.weights: dict[int, Tensor] = {}

    @property
    def attentions(self) -> tuple[Tensor, ...]:
        """The recorded weights in the order of the layers, (B, N, T, S) each."""
        return tuple(self.weights[layer] for layer in sorted(self.weights))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Attend as the inner context does, and record: q (B, T, N, H), k and v (B, T, K, H) -> (B, T, N, H)."""
        if self.layers is not None and layer not in self.layers:
            return self.inner.attend(q, k, v, rotation, layer=layer)
        inner = self.inner
        keys, values = inner.store(k, v, rotation, layer)
        q = rotation(q).transpose(1, 2)
        is_reference = inner.backend is eager.attend
        dropout = inner.dropout if is_reference else 0.0
        self.weights[layer] = eager.weights(q, keys, inner.mask, scale=inner.scale, dropout=dropout)
        return eager.mix(self.weights[layer], values) if is_reference else inner.attend_to(q, keys, values)
