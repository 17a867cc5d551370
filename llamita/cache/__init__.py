"""Keys and values of the tokens seen so far, in three ways of keeping them."""

from llamita.cache.cache import Cache as Cache
from llamita.cache.dynamic import DynamicCache as DynamicCache
from llamita.cache.sliding import SlidingWindowCache as SlidingWindowCache
from llamita.cache.static import StaticCache as StaticCache

__all__ = ["Cache", "DynamicCache", "SlidingWindowCache", "StaticCache"]
