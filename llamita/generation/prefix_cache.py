"""Prefix cache: a text that begins like the last one reuses its keys and values."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llamita.cache import saved
from llamita.cache.growing import GrowingCache
from llamita.errors import BrokenFileError, UsageError
from llamita.generation.common_prefix import common_prefix


class Prefix:
    """The cache of one text, reused by the next as far as both begin alike; a chat reads every turn only once.

    layers: how many the model has; after an interrupted pass, some of them hold more tokens than others.
    """

    def __init__(self, layers: int) -> None:
        self.cache = GrowingCache()
        self.layers = layers
        self.token_ids: list[int] = []  # the text of the cache; its last tokens may be unread

    def take(self, token_ids: Sequence[int]) -> GrowingCache:
        """The cache, cropped to the common prefix with a new text; at least the last token stays unread."""
        self.cache.crop(min(common_prefix(self.token_ids, token_ids), len(token_ids) - 1, self._complete))
        self.token_ids = list(token_ids)
        return self.cache

    def follow(self, steps: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the steps (1,) of a run, and append each to the text."""
        for step in steps:
            self.token_ids.append(int(step))
            yield step

    def save(self, path: Path, *, fingerprint: str) -> None:
        """Write the cache and its token ids to a file, for `load` with the same model fingerprint.

        Raises UsageError where nothing was read yet; AccessError, or LlamitaError where the disk is full.
        """
        length = min(self._complete, len(self.token_ids))
        if not length:
            raise UsageError("this prefix has read nothing yet: stream a text with it first")
        self.cache.crop(length)
        saved.save(self.cache, path, fingerprint=fingerprint, note=json.dumps(self.token_ids[:length]))

    @classmethod
    def load(cls, path: Path, *, layers: int, fingerprint: str, device: torch.device | str) -> "Prefix":
        """Read what `save` wrote. Raises UsageError for another model, NotFoundError, AccessError, BrokenFileError."""
        cache, prefix = saved.load(path, fingerprint=fingerprint, device=device), cls(layers)
        try:
            prefix.token_ids = [int(token_id) for token_id in json.loads(saved.note_of(path))]
        except (ValueError, TypeError, RecursionError):
            prefix.token_ids = []
        is_whole = cache.length == len(prefix.token_ids) and len(cache) == layers
        if not isinstance(cache, GrowingCache) or not is_whole or cache.keys[0].shape[0] != 1:
            raise BrokenFileError(f"{path} is no prefix: name a file that save_prefix wrote")
        prefix.cache = cache
        return prefix

    @property
    def _complete(self) -> int:
        """How many tokens every layer holds."""
        keys, values = self.cache.keys, self.cache.values
        if not len(keys) == len(values) == self.layers:
            return 0
        return min(stored.shape[2] for stored in (*keys, *values))
