"""Check the cache slots that a caller names."""

from torch import Tensor

from llamita.cache.cache import Cache
from llamita.context.arguments import check_tensors
from llamita.errors import UsageError


def check_cache_position(cache_position: Tensor, queries: int, cache: Cache | None) -> None:
    """Raise UsageError unless the slots (T,) that a caller names are the next ones of the cache."""
    check_tensors(cache_position=cache_position)
    start = 0 if cache is None else cache.length
    if cache_position.tolist() != list(range(start, start + queries)):
        raise UsageError(
            f"cache_position is not {start} to {start + queries - 1}, where the cache puts these {queries} tokens: "
            "leave it out, and say where they stand by position_ids"
        )
