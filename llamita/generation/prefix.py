"""Reading on from where the last text and the next part ways."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from llamita.cache.growing import GrowingCache


class Prefix:
    """The cache of one text, handed to the next as far as both begin alike: a chat reads every turn only once.

    layers: how many the model has; a pass that was interrupted leaves some of them behind.
    """

    def __init__(self, layers: int) -> None:
        self.cache = GrowingCache()
        self.layers = layers
        self.token_ids: list[int] = []  # the text that the cache belongs to; its end need not have been read

    def take(self, token_ids: Sequence[int]) -> GrowingCache:
        """The cache cut to what it has of a text that is about to be read; the last token is always left to read."""
        self.cache.crop(min(common(self.token_ids, token_ids), len(token_ids) - 1, self._complete))
        self.token_ids = list(token_ids)
        return self.cache

    def follow(self, steps: Iterator[Tensor]) -> Iterator[Tensor]:
        """Steps (1,), each noted as it comes: what is read next, or was read just now."""
        for step in steps:
            self.token_ids.append(int(step))
            yield step

    @property
    def _complete(self) -> int:
        """Tokens that every layer has."""
        keys, values = self.cache.keys, self.cache.values
        if not len(keys) == len(values) == self.layers:
            return 0
        return min(stored.shape[2] for stored in (*keys, *values))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
