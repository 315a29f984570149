"""Streams with a reply for each request in order, with bounded requests in flight.

While the bound is reached nothing is read, so that the sender waits. A request counts until its
reply is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import grpc
from google.protobuf.message import Message

from guerdon.serving.errors import Unavailable
from guerdon.serving.process.lifecycle import Lifecycle
from guerdon.serving.wire.handlers import Context, read, send

Answer = Callable[[bytes], Awaitable[Message]]


class OrderedStream:
    """One stream, which ends with the error of the first request that fails.

    Args:
        answer: makes the reply of a request.
        in_flight: most requests that are read and not yet answered.
    """

    def __init__(
        self, context: Context, lifecycle: Lifecycle, answer: Answer, *, in_flight: int
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._answer = answer
        self._room = asyncio.Semaphore(in_flight)

    async def run(self) -> None:
        """Serve the stream until its end, its first error, or until the server drains.

        Raises:
            ServiceError: a request failed; those before it have been answered.
            Unavailable: the server drains; what was read has been answered.
        """
        self._lifecycle.check_accepting()
        draining = asyncio.create_task(self._lifecycle.wait_draining())
        try:
            # Leaving the group waits for the requests in flight; an error cancels them.
            async with asyncio.TaskGroup() as group:
                drained = await self._read_all(group, draining)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first: each waits for the one before
        finally:
            draining.cancel()
        if drained:
            raise Unavailable("the server is draining; what was read has been answered")

    async def _read_all(self, group: asyncio.TaskGroup, draining: asyncio.Task[None]) -> bool:
        """Start a task for each request; True if the server drains before the stream's end."""
        before: asyncio.Task[None] | None = None
        while True:
            await self._room.acquire()
            data = await read(self._context, draining)
            if data is None:
                return True
            if data is grpc.aio.EOF:
                return False
            before = group.create_task(self._serve(cast(bytes, data), before))

    async def _serve(self, data: bytes, before: asyncio.Task[None] | None) -> None:
        """Answer a request, or fail, once the one before it has been answered."""
        try:
            reply = await self._answer(data)
        finally:
            if before is not None:
                await before
        await send(self._context, reply)
        self._room.release()
