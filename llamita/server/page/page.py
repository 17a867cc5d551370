"""Serve the chat page: an exact map from path to bytes, read once; no path is joined, none reaches a disk."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser asks again, so that an upgrade is seen at once
}
MEDIA_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# URL path -> file. The paths need no key: the page asks for one itself.
NAMES: Mapping[str, str] = {
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in (
            "style.css", "icon.svg", "app.js", "answer.js", "api.js", "chat.js", "clipboard.js", "conversation.js",
            "elements.js", "files.js", "inline.js", "markdown.js", "models.js", "running.js", "settings.js",
            "storage.js", "tokens.js", "versions.js",
        )
    },
}  # fmt: skip
PATHS = frozenset(NAMES)


def page_routes() -> list[Route]:
    """Routes of the page and its files, all of them public and none in the OpenAPI schema."""
    return [_route(path, name) for path, name in NAMES.items()]


def _route(path: str, name: str) -> Route:
    content = files("llamita.server.page").joinpath(name).read_bytes()
    endpoint = _endpoint(content, MEDIA_TYPES[name.rpartition(".")[2]])
    return Route(path, endpoint, methods=["GET"], include_in_schema=False)


def _endpoint(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=dict(HEADERS))

    return answer
