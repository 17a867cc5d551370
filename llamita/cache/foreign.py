"""Caches of other libraries: transformers' cache objects, and pairs of keys and values."""

from typing import Any

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.cache.dynamic import DynamicCache
from llamita.errors import UnsupportedError, UsageError

LAYERS = frozenset({"DynamicLayer", "StaticLayer"})  # transformers' layers that hand back what a pass attends to


class ForeignCache(Cache):
    """transformers' DynamicCache or StaticCache as one of our caches; the object itself holds keys and values."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store k and v (B, K, T, H) of one layer; returns those of all slots to attend to, (B, K, S, H)."""
        return self.inner.update(k.contiguous(), v.contiguous(), layer)

    def append_positions(self, positions: Tensor) -> Tensor:
        """Refused: the object holds keys that are rotated already."""
        raise UnsupportedError(
            f"a {type(self.inner).__name__} of transformers keeps no keys for a rotary type whose frequencies depend "
            "on the length: pass llamita.DynamicCache()"
        )

    def visible_range(self, queries: int) -> tuple[int, int]:
        """The slots that a pass of `queries` tokens attends to: the number of the first, and their count.

        Raises UsageError where the tokens do not fit the cache.
        """
        kept, first = self.inner.get_mask_sizes(queries, 0)
        if kept < self.length + queries:
            raise UsageError(
                f"{self.length} cached and {queries} new tokens do not fit a {type(self.inner).__name__} of {kept}: "
                "make it larger"
            )
        return first, kept

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return int(self.inner.get_seq_length())

    @property
    def offset(self) -> int | Tensor:
        """`length`, as a tensor where the capacity is fixed: then a mask says what is filled."""
        is_fixed = any(type(layer).__name__ == "StaticLayer" for layer in self.inner.layers)
        return (
            torch.tensor(self.length, device=self.inner.layers[0].keys.device if self.length else None)
            if is_fixed
            else self.length
        )

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; a negative number forgets that many of the last."""
        if removed := self.length - self.resolved_length(length):
            self._ask("crop", removed)

    def reset(self) -> None:
        """Forget everything."""
        self.inner.reset()

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` (B,) was."""
        self._ask("reorder_cache", rows)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._ask("batch_select_indices", rows)

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch `times` times; the copies of a row follow each other."""
        if self.length:
            self._ask("batch_repeat_interleave", times)

    def _ask(self, name: str, argument: Any) -> None:
        if not all(hasattr(layer, name) for layer in self.inner.layers):
            raise UnsupportedError(
                f"a {type(self.inner).__name__} of transformers has no {name}, which this way of writing needs: pass "
                "llamita.DynamicCache()"
            )
        getattr(self.inner, name)(argument)

    def __len__(self) -> int:
        """How many layers have stored something."""
        return sum(bool(layer.is_initialized) for layer in self.inner.layers)


def adapted(cache: Any) -> Cache | None:
    """Any cache as one of our classes: ours unchanged, transformers' in a ForeignCache, pairs in a DynamicCache.

    Raises UnsupportedError for other kinds of transformers' caches, UsageError for what is no cache.
    """
    if cache is None or isinstance(cache, Cache):
        return cache
    name = type(cache).__name__
    if isinstance(cache, tuple | list):
        return DynamicCache.from_legacy_cache(cache) if len(cache) else None
    if not (hasattr(cache, "layers") and hasattr(cache, "get_mask_sizes")):
        raise UsageError(f"past_key_values is a {name}, which is no cache: pass llamita.DynamicCache()")
    layers = {type(layer).__name__ for layer in cache.layers}
    if hasattr(cache, "cross_attention_cache") or not layers <= LAYERS or getattr(cache, "offloading", False):
        raise UnsupportedError(
            f"past_key_values is a {name} of transformers, which works only there: pass one of llamita.cache"
        )
    return ForeignCache(cache)
