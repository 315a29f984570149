"""Streams of requests with bounded requests in flight; replies come as they finish, or in order.

Back-pressure is gRPC's own: while the bound is reached nothing is read, so the
window of the stream fills and the sender waits. A request counts until its reply is
written, so a reader that is slow to take replies slows its own sending.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import cast

import grpc
from google.protobuf.message import Message

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scorer, in_item
from guerdon.reward.wire import convert
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, Unavailable
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.status import describe
from guerdon.serving.wire.convert import check_id, timeout
from guerdon.serving.wire.handlers import Context, decode, read, send
from guerdon.v1 import reward_pb2


class RequestStream(ABC):
    """A stream of requests, each answered by a task of its own.

    Args:
        in_flight: most requests that are read and not yet answered.
    """

    def __init__(self, context: Context, lifecycle: Lifecycle, in_flight: int) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._room = asyncio.Semaphore(in_flight)

    async def run(self) -> None:
        """Serve the stream until its end, its first error, or until the server drains.

        Raises:
            ServiceError: a request failed, or the caller has left.
            Unavailable: the server drains; what was read has been answered.
        """
        self._lifecycle.check_accepting()
        draining = asyncio.create_task(self._lifecycle.wait_draining())
        try:
            # Leaving the group waits for the requests in flight; an error cancels them.
            async with asyncio.TaskGroup() as group:
                drained = await self._read_all(group, draining)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first to fail
        finally:
            draining.cancel()
        if drained:
            raise Unavailable("the server is draining; what was read has been answered")

    async def _read_all(self, group: asyncio.TaskGroup, draining: asyncio.Task[None]) -> bool:
        """Start a task for each request; True if the server drains before the stream's end."""
        while True:
            await self._room.acquire()
            data = await read(self._context, draining)
            if data is None:
                return True
            if data is grpc.aio.EOF:
                return False
            self._begin(group, cast(bytes, data))

    @abstractmethod
    def _begin(self, group: asyncio.TaskGroup, data: bytes) -> None:
        """Start the task that answers a request, and then makes room for another."""


class ScoreStreamCall(RequestStream):
    """One `ScoreStream`.

    Args:
        deadline: of the whole stream, on `time.monotonic`'s clock.
        items_in_flight: most items that are read and not yet answered.
    """

    def __init__(
        self,
        context: Context,
        scorer: Scorer,
        calls: ScoringCalls,
        limits: RequestLimits,
        *,
        deadline: float | None,
        items_in_flight: int,
    ) -> None:
        super().__init__(context, calls.lifecycle, items_in_flight)
        self._scorer = scorer
        self._calls = calls
        self._limits = limits
        self._deadline = deadline
        self._writing = asyncio.Lock()
        self._ids: set[str] = set()

    def _begin(self, group: asyncio.TaskGroup, data: bytes) -> None:
        group.create_task(self._serve(data, time.monotonic()))

    async def _serve(self, data: bytes, arrival: float) -> None:
        """Answer one item, whatever happens to it."""
        reply = reward_pb2.ScoreStreamResponse()
        held = ""
        try:
            with self._calls.serve("ScoreStream", self._deadline) as call:
                call.arrival = arrival
                request = await self._scorer.off_loop(
                    len(data), decode, reward_pb2.ScoreStreamRequest, data
                )
                reply.request_id = request.request_id
                held = self._hold(request.request_id)
                reply.scores.CopyFrom(await self._score(call, request, len(data)))
        except Exception as error:
            reply.error.CopyFrom(describe(error).to_proto())
        finally:
            self._ids.discard(held)
        async with self._writing:
            await send(self._context, reply)
        self._room.release()

    def _hold(self, request_id: str) -> str:
        """Keep an id from being used twice at a time."""
        if not request_id:
            raise InvalidRequest("request_id", "is required")
        check_id("request_id", request_id, self._limits.max_id_length)
        if request_id in self._ids:
            raise InvalidRequest("request_id", f"{request_id!r} is in flight on this stream")
        self._ids.add(request_id)
        return request_id

    async def _score(
        self, call: ScoringCall, request: reward_pb2.ScoreStreamRequest, size: int
    ) -> reward_pb2.StreamedScores:
        options = convert.options(request.options)
        call.asks(request.model, options.priority)
        if request.HasField("timeout"):
            own = call.arrival + timeout(request.timeout, "timeout")
            call.deadline = own if call.deadline is None else min(own, call.deadline)
        if call.late:
            raise DeadlinePassed("the item's time was over when it was read")
        item = await self._scorer.off_loop(size, convert.item, request.item, self._limits, "item")
        scored = await self._scorer.score(call, request.model, [item], options, in_item)
        return reward_pb2.StreamedScores(
            item=convert.item_scores([item], scored)[0],
            info=convert.scoring_info(scored),
            timing=convert.timing(scored, call.elapsed()),
        )


class OrderedStream(RequestStream):
    """A stream with a reply for each request in order; the first that fails ends it.

    Args:
        answer: makes the reply of a request.
        in_flight: most requests that are read and not yet answered.
    """

    def __init__(
        self,
        context: Context,
        lifecycle: Lifecycle,
        answer: Callable[[bytes], Awaitable[Message]],
        *,
        in_flight: int,
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
