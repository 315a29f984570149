"""A small OpenAI-compatible endpoint, on a real socket in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Endpoint:
    """Answers the k-th request by `reply(k, body)`."""

    reply: Callable[[int, dict[str, Any]], Response]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Answers wait for it."""
    left: int = 0
    """Callers that left before their answer."""
    url: str = ""

    async def serve(self, request: Request) -> Response:
        body = await request.json()
        place = len(self.bodies)
        self.bodies.append(body)
        self.paths.append(request.url.path)
        self.keys.append(request.headers.get("authorization"))
        waiting = asyncio.ensure_future(self.gate.wait())
        leaving = asyncio.ensure_future(request.receive())
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, leaving):
            task.cancel()
        if not self.gate.is_set():
            self.left += 1
        return self.reply(place, body)


def chat_reply(text: str | None, *, tokens: int | None = 3, **message: Any) -> Response:
    """A whole answer of one choice."""
    said = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    used = {"prompt_tokens": 4, "completion_tokens": tokens}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "theirs"}
    return JSONResponse({**whole, "choices": [choice], "usage": used})


def chat_stream(*texts: str, **fields: Any) -> Response:
    """A streamed answer, each event with the fields, ended as OpenAI ends it."""

    async def events() -> AsyncIterator[bytes]:
        named = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "theirs"}
        whole = {**named, **fields}
        for text in texts:
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            yield f"data: {json.dumps({**whole, 'choices': [choice]})}\r\n\r\n".encode()
        yield b"data: [DONE]\r\n\r\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@asynccontextmanager
async def start_endpoint(
    reply: Callable[[int, dict[str, Any]], Response],
) -> AsyncIterator[Endpoint]:
    """An endpoint whose gate is open."""
    endpoint = Endpoint(reply)
    endpoint.gate.set()
    paths = ("/v1/chat/completions", "/v1/completions")
    app = Starlette(routes=[Route(path, endpoint.serve, methods=["POST"]) for path in paths])
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", http="h11")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        endpoint.gate.set()
        await server.shutdown()
