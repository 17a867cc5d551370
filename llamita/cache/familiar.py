"""Names by which users of transformers know what a cache can do."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

from torch import Tensor

from llamita.errors import UsageError


class FamiliarCache:
    """The methods of transformers' caches, also those that only 4.57 has; no pass of the model needs them."""

    def get_seq_length(self: Any, layer_idx: int = 0) -> int:
        """`length`."""
        return self.length

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        """`reorder`."""
        self.reorder(beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        """`select`."""
        self.select(indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        """`repeat`."""
        self.repeat(repeats)

    def __getitem__(self: Any, layer: int) -> tuple[Tensor, Tensor]:
        """(k, v) of one layer, the filled slots only: (B, K, S, H)."""
        return [*self][layer]

    def to_legacy_cache(self: Any) -> tuple[tuple[Tensor, Tensor], ...]:
        """(k, v) of each layer, as `from_legacy_cache` takes them."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[Sequence[Tensor]] | None = None) -> Self:
        """A cache of (k, v) of each layer, (B, K, S, H) each, of a class that is made without arguments.

        Raises UsageError for what is no such list.
        """
        cache: Any = cls()
        for layer, pair in enumerate(past_key_values or ()):
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair)
            if not is_pair or pair[0].ndim != 4 or pair[0].shape != pair[1].shape:
                raise UsageError(
                    "past_key_values is a list, but not of (keys, values) of each layer, (batch, heads, tokens, "
                    "width): pass llamita.DynamicCache()"
                )
            cache.update(pair[0], pair[1], layer)
        return cache
