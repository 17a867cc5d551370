"""Keys and values of the tokens seen so far, in several ways of keeping them."""

from llamita.cache.cache import Cache as Cache
from llamita.cache.dynamic import DynamicCache as DynamicCache
from llamita.cache.offloaded import OffloadedCache as OffloadedCache
from llamita.cache.quantized import QuantizedCache as QuantizedCache
from llamita.cache.sink import SinkCache as SinkCache
from llamita.cache.sliding import SlidingWindowCache as SlidingWindowCache
from llamita.cache.static import StaticCache as StaticCache

__all__ = [
    "Cache",
    "DynamicCache",
    "OffloadedCache",
    "QuantizedCache",
    "SinkCache",
    "SlidingWindowCache",
    "StaticCache",
]
