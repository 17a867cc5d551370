"""What the operator of a server sets: who may use it, and the bounds of everything."""

import ipaddress
from dataclasses import dataclass

from llamita.errors import UsageError
from llamita.server.keys import NO_KEYS, Keys


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Access and bounds of a server. Times are seconds, None is no limit.

    keys: of clients, none lets everybody in. admin_keys: of those who read /metrics; the clients' where there are none.
    allowed_hosts: names that the Host header may have; None is those of this machine where the server listens to it
    alone, and any otherwise. max_connections: at once; more get 503. header_timeout: to receive a request's headers.
    max_body_bytes: of a request. body_timeout: to receive one. request_timeout: to answer, waiting included.
    queue_timeout: that a text may wait for its turn. send_timeout: for a client to take a piece of a stream.
    drain_timeout: to finish answers when the server stops. stall_timeout: after so long without a step of a busy engine
    /health says 503. unload_after: after so long without a request a model is unloaded, until the next one.
    has_receipts: every answer has them, not only those whose request asks for them. Raises UsageError for a bound below
    its least.
    """

    host: str = "127.0.0.1"
    keys: Keys = NO_KEYS
    admin_keys: Keys = NO_KEYS
    allowed_hosts: tuple[str, ...] | None = None
    max_connections: int = 1000
    header_timeout: float = 30.0
    max_body_bytes: int = 2_000_000
    body_timeout: float = 30.0
    request_timeout: float | None = 3600.0
    queue_timeout: float | None = None
    send_timeout: float = 60.0
    drain_timeout: float = 30.0
    stall_timeout: float = 120.0
    has_receipts: bool = False
    unload_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_connections"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("header_timeout", "body_timeout", "send_timeout", "drain_timeout", "stall_timeout"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}: give 0 seconds or more")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
