"""/docs and /openapi.json: what the server takes, as a page without scripts, fonts or anything from elsewhere."""

import html
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto}"
    "body{padding:0 1rem}"
    "code{font:14px ui-monospace,monospace}table{border-collapse:collapse;width:100%}"
    "td{border-top:1px solid #8884;padding:.2rem .8rem .2rem 0;vertical-align:top}h2{margin-top:2.5rem}"
)
REFERENCE = "#/components/schemas/"


async def openapi(request: Request) -> Response:
    """The OpenAPI description."""
    return JSONResponse(request.app.openapi())


async def docs(request: Request) -> Response:
    """The same, for people."""
    return Response(page(request.app.openapi()), media_type="text/html", headers=HEADERS)


def describe(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description with the schemas of all bodies, which our handlers read themselves."""
    if app.openapi_schema is None:
        description = FastAPI.openapi(app)
        bodies: list[tuple[type[BaseModel], JsonSchemaMode]] = [(body, "validation") for body in app.state.bodies]
        _, found = models_json_schema(bodies, ref_template=REFERENCE + "{model}")
        description.setdefault("components", {})["schemas"] = schemas = found.get("$defs", {})
        for body, _ in bodies:
            if "model" in (fields := schemas[body.__name__]["properties"]):
                names = [model.name for model in app.state.server.models]
                fields["model"]["enum"] = [*names, None] if "anyOf" in fields["model"] else names
        app.openapi_schema = description
    return app.openapi_schema


def page(description: dict[str, Any]) -> str:
    """The description as HTML: each path with what it does and the fields of its body."""
    schemas = description["components"]["schemas"]
    parts = [
        _section(path, method, what, schemas)
        for path, methods in description["paths"].items()
        for method, what in methods.items()
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>llamita</title><style>{STYLE}</style>"
    return f"{head}<h1>llamita</h1><p>As <a href=openapi.json>openapi.json</a> for programs.</p>{''.join(parts)}</html>"


def _section(path: str, method: str, what: dict[str, Any], schemas: dict[str, Any]) -> str:
    content = what.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = schemas.get(content.get("schema", {}).get("$ref", "").removeprefix(REFERENCE), {})
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(kind(field))}<td>{'needed' * (name in required)}"
        for name, field in schema.get("properties", {}).items()
    ]
    text = html.escape(what.get("description", ""))
    return f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{text}</p><table>{''.join(rows)}</table>"


def kind(field: dict[str, Any]) -> str:
    """What a field may hold, in a few words."""
    if "$ref" in field:
        return field["$ref"].removeprefix(REFERENCE)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind(one) for one in field["anyOf"] if one.get("type") != "null"))
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        return f"list of {kind(field.get('items', {}))}"
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    return field.get("type", "anything") + (f" from {low:g} to {high:g}" if None not in (low, high) else "")
