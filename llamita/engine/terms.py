"""How the engine serves a request, whatever the request asks for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a request.

    priority: lower is served first. cache_salt: only requests of the same salt share cached prompts. timeout: seconds
    that it may take, waiting included. queue_timeout: seconds that it may wait for its first step.
    """

    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    queue_timeout: float | None = None
