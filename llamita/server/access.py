"""Who may ask: keys by path, everything closed that is not named open; and the names that this server answers to."""

import re
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv6Address

from starlette.types import ASGIApp, Receive, Scope, Send

from llamita.checks import quoted
from llamita.errors import UsageError
from llamita.server.errors import Failure, RequestError, refused
from llamita.server.keys import Keys
from llamita.server.settings import ServerSettings

ADMIN_PATHS = frozenset({"/metrics"})
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::")


class KeyCheck:
    """Middleware that asks for a key on every path but the open ones. It looks at the path that is routed by."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, open_paths: Collection[str]) -> None:
        self._app, self._keys, self._open_paths = app, settings.keys, open_paths
        self._admin_keys = settings.admin_keys or settings.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            keys = self._admin_keys if scope["path"] in ADMIN_PATHS else self._keys
            if keys:
                scope["llamita.key"] = self._checked(scope, keys)
        await self._app(scope, receive, send)

    def _checked(self, scope: Scope, keys: Keys) -> str:
        given = given_key(scope)
        name = None if given is None else keys.id_of(given)
        if name is None:
            text = "the API key is wrong" if given else "this server wants an API key: Authorization: Bearer KEY"
            raise RequestError(Failure(401, text, "authentication_error", "invalid_api_key"))
        return name


def given_key(scope: Scope) -> bytes | None:
    """The key of the Authorization or the x-api-key header, as bytes, whatever they are; None where there is none."""
    headers = dict(reversed(scope["headers"]))
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return headers.get(b"x-api-key", b"").strip() or None


class HostCheck:
    """Middleware that refuses requests for other names than the server's: pages of other sites that rebind theirs."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings) -> None:
        self._app = app
        # With names of its own too, a server answers to this machine's, which no page of another site can have.
        names = () if settings.allowed_hosts is None and settings.is_local else settings.allowed_hosts
        own = () if settings.host in EVERY_ADDRESS else (in_header(settings.host),)
        self._hosts = None if names is None else {*LOCAL_HOSTS, *own, *names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._hosts is not None:
            given = [value for name, value in scope["headers"] if name == b"host"]
            # HTTP/1.0 has no such header: probes of load balancers leave it out, and browsers, which rebind, never do.
            is_nameless = not given and scope["http_version"] == "1.0"
            if not is_nameless and (len(given) != 1 or host_name(given[0]) not in self._hosts):
                raise refused(
                    "this server does not answer to that host name: --allowed-host lets it", code="host", status=403
                )
        await self._app(scope, receive, send)


def in_header(host: str) -> str:
    """A name or an address as a Host header and a URL have it."""
    return f"[{host}]" if ":" in host else host


def host_name(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else text


def named_host(given: str) -> str:
    """A name as `host_name` gives it. Raises UsageError for what no Host header has."""
    with suppress(ValueError):
        return f"[{IPv6Address(given)}]"
    name = host_name(given.encode())
    if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", name):
        raise UsageError(
            f"--allowed-host is {quoted(given)}: give one name as a Host header has it, such as llama.example"
        )
    return name
