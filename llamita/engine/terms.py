"""How the engine serves a request, whatever the request asks for."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from llamita import checks
from llamita.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a request.

    priority: lower is served first. cache_salt: only requests of the same salt share cached prompts. timeout: seconds
    that it may take, waiting included. queue_timeout: seconds that it may wait for its first step. Raises UsageError
    for values of another kind, which would end the engine's thread, and all requests with it.
    """

    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    queue_timeout: float | None = None

    def __post_init__(self) -> None:
        checks.whole("priority", self.priority)
        if not isinstance(self.cache_salt, str):
            raise UsageError(f"cache_salt is {checks.quoted(self.cache_salt)}: it must be a text")
        for name in ("timeout", "queue_timeout"):
            seconds: Any = getattr(self, name)
            if seconds is not None and not (isinstance(seconds, Real) and seconds == seconds):
                raise UsageError(f"{name} is {checks.quoted(seconds)}: it must be a number of seconds")
