"""The addresses that a process may have (ulimit -v): where they are too few, libraries fail in misleading ways."""

from llamita.errors import MemoryShortError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

LEAST = 700_000_000  # bytes; with fewer, libraries that torch loads may end the process before it can say why


def limit() -> int | None:
    """The most bytes of addresses that this process may have, None where nothing limits them."""
    if resource is None:
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def check() -> None:
    """Raise MemoryShortError where torch and the kernels' compiler do not fit; called before they are imported."""
    if (most := limit()) is not None and most < LEAST:
        raise too_small(most)


def too_small(most: int) -> MemoryShortError:
    """The error of a process that runs out of memory under this limit."""
    return MemoryShortError(
        f"this process may have {most // 1_000_000} MB of addresses (ulimit -v), too few for torch, its libraries and "
        "the model: raise that limit, or take a smaller model"
    )
