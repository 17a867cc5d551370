"""A server with the page and a scripted model behind it: it writes what a test tells it."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from llamita.server.page.page import page_routes


@dataclass
class Script:
    """What the model writes, token by token, and what it was asked."""

    tokens: list[str] = field(default_factory=lambda: ["I", " am", " a", " script", "."])
    alternatives: Mapping[str, list[tuple[str, float]]] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)  # tokens that are no whole characters, in place of `tokens`
    finish: str = "stop"
    pause: float = 0.0  # seconds before each token
    error: tuple[int, str] | None = None
    breaks_after: int | None = None  # tokens, then the connection closes without an end
    key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    disconnects: int = 0


def error(status: int, message: str) -> JSONResponse:
    """OpenAI's error object."""
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": None}}, status)


def scripted_app(script: Script) -> FastAPI:
    """The page, /v1/models and /v1/chat/completions of a script."""
    app = FastAPI()
    app.router.routes.extend(page_routes())

    def refused(request: Request) -> JSONResponse | None:
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            return error(401, "The API key is wrong.")
        return None

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        data = [{"id": name, "object": "model", "max_model_len": 512} for name in ("script", "second")]
        return refused(request) or JSONResponse({"object": "list", "data": data})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        script.requests.append(body)
        if script.error:
            return error(*script.error)
        return refused(request) or StreamingResponse(chunks(script, body), media_type="text/event-stream")

    return app


async def chunks(script: Script, body: dict[str, Any]) -> AsyncIterator[str]:
    """The chunks of one answer, in OpenAI's form."""
    try:
        yield sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for piece in script.pieces:
            yield sse({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [piece_logprob(piece)]}}]})
        text = b"".join(script.pieces).decode()
        for number, token in enumerate([text] if text else script.tokens):
            await asyncio.sleep(script.pause)
            if number == script.breaks_after:
                return
            choice: dict[str, Any] = {"index": 0, "delta": {"content": token}, "finish_reason": None}
            if body.get("logprobs") and not text:
                choice["logprobs"] = {"content": [logprob(script, token)]}
            yield sse({"choices": [choice]})
        extra = {"receipts": [{"version": 1}]} if body.get("receipt") else {}
        yield sse({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish}], **extra})
        count = len(script.tokens)
        usage = {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": 20 + count}
        yield sse({"choices": [], "usage": usage, "timings": {"predicted_per_second": 321.4}})
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        script.disconnects += 1
        raise


def logprob(script: Script, token: str) -> dict[str, Any]:
    """One entry of logprobs.content."""
    others = script.alternatives.get(token, [(token, 0.9), (" other", 0.1)])
    top = [{"token": text, "bytes": list(text.encode()), "logprob": math.log(p)} for text, p in others]
    own = next(entry["logprob"] for entry in top if entry["token"] == token)
    return {"token": token, "bytes": list(token.encode()), "logprob": own, "top_logprobs": top}


def piece_logprob(piece: bytes) -> dict[str, Any]:
    """The entry of a token that may be part of a character."""
    token = piece.decode(errors="replace")
    top = [{"token": token, "bytes": list(data), "logprob": math.log(0.5)} for data in (piece, piece[:1])]
    return {**top[0], "top_logprobs": top}


def sse(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


@contextmanager
def serving_app(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an app from a thread; gives its address, and stops it hard at the end."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, http="h11", log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
