"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from guerdon.serving.openai.replies import as_bytes

STALL_SECONDS = 60.0
"""Seconds in which a caller must read what is sent: until then it keeps others from the room."""
DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""


def event(value: Mapping[str, Any]) -> bytes:
    """JSON as one event."""
    return b"data: " + as_bytes(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip: it keeps a connection alive, and a person who looks informed."""
    return b": " + text.replace("\n", " ").encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A response of events as they come; closes their generator when the caller leaves.

    Args:
        first: the event that has come already.
        events: those after it.
        headers: of the answer, beside a stream's own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]
    ) -> None:
        # The latter tells proxies to pass events on as they come.
        own = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers={**own, **headers})
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the caller leaves."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(receive())  # the body is read: only a disconnect comes
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            await asyncio.wait({sending})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        async def send_body(piece: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": more})

        async with aclosing(self._events):
            with contextlib.suppress(TimeoutError):  # the connection is closed then
                await send(start)
                await send_body(self._first)
                async for piece in self._events:
                    await send_body(piece)
                await send_body(b"", more=False)
