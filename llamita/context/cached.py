"""A pass that continues from the keys and values of earlier ones."""

from torch import Tensor

from llamita.attention import Backend
from llamita.attention.mask import Mask
from llamita.cache.cache import Cache
from llamita.context.causal import Causal
from llamita.context.protocol import Rotation


class Cached(Causal):
    """Tokens attend to what the cache holds and to this pass; their keys and values are stored.

    Keys are stored rotated, except where the frequencies depend on the length (dynamic NTK, LongRoPE) or the cache
    asks for it: those stay un-rotated in the cache, and every pass rotates all of them by its own frequencies. So a
    query and all of its keys always agree on the angles, however the sequence was cut into passes.
    """

    def __init__(
        self, positions: Tensor, mask: Mask, cache: Cache, *, backend: Backend, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(cache.relative_positions(positions), mask, backend=backend, scale=scale, dropout=dropout)
        self.cache = cache
        self._key_rotation: Rotation | None = None

    def store(self, k: Tensor, v: Tensor, rotation: Rotation, layer: int) -> tuple[Tensor, Tensor]:
        """Store this pass's keys and values (B, T, K, H); returns all in sight, keys rotated: (B, K, S, H)."""
        v = v.transpose(1, 2)
        if not (rotation.depends_on_length or self.cache.unrotated):
            return self.cache.update(rotation(k).transpose(1, 2), v, layer)
        if self._key_rotation is None:  # the first layer; the others stand at the same positions
            positions = self.positions.expand(k.shape[0], -1)
            self._key_rotation = rotation.at(self.cache.append_positions(positions))
        keys, values = self.cache.update(k.transpose(1, 2), v, layer)
        return self._key_rotation(keys.transpose(1, 2)).transpose(1, 2), values
