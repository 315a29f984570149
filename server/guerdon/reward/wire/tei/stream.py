"""Streams with a reply for each request in order, with bounded requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from guerdon.reward.wire.stream import RequestStream
from guerdon.serving.process.lifecycle import Lifecycle
from guerdon.serving.wire.handlers import Context, send

Answer = Callable[[bytes], Awaitable[Message]]


class OrderedStream(RequestStream):
    """One stream, which ends with the error of the first request that fails.

    Args:
        answer: makes the reply of a request.
        in_flight: most requests that are read and not yet answered.
    """

    def __init__(
        self, context: Context, lifecycle: Lifecycle, answer: Answer, *, in_flight: int
    ) -> None:
        super().__init__(context, lifecycle, in_flight)
        self._answer = answer
        self._before: asyncio.Task[None] | None = None

    def _begin(self, group: asyncio.TaskGroup, data: bytes) -> None:
        self._before = group.create_task(self._serve(data, self._before))

    async def _serve(self, data: bytes, before: asyncio.Task[None] | None) -> None:
        """Answer a request, or fail, once the one before it has been answered."""
        try:
            reply = await self._answer(data)
        finally:
            if before is not None:
                await before
        await send(self._context, reply)
        self._room.release()
