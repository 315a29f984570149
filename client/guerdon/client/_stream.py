"""`score_stream`: a window of items in flight over a stream that is made anew when it breaks.

    source ─▶ _feed ─▶ outbox ─▶ _write ─▶ server ─▶ _read ─▶ results ─▶ the caller
                         ▲ unanswered items of a broken stream, and shed ones, go back

Scoring is pure, so an item may be computed twice; it is answered once: by the first reply.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from guerdon.client import _wire
from guerdon.client._connection import Connection, Unset, being_cancelled
from guerdon.client._retry import Backoff, Deadline
from guerdon.client.config import Limits
from guerdon.client.errors import (
    GuerdonError,
    Internal,
    ServerStatus,
    Unavailable,
    from_status,
    invalid,
)
from guerdon.client.types import Item, StreamResult
from guerdon.together import cancel
from guerdon.v1 import reward_pb2, reward_pb2_grpc


@dataclass(slots=True, eq=False)
class _Pending:
    """An item that has no answer yet."""

    index: int
    item: Item
    deadline: Deadline
    backoff: Backoff
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The end of everything, handed to the caller."""

    error: BaseException


class ScoreStream:
    """One call of `score_stream`.

    Args:
        connection: to the servers.
        model: as given.
        source: items.
        options: how to score.
        timeout: seconds for each item, from when it is taken from the source.
        in_flight: most items that are taken and not yet handed to the caller.
    """

    def __init__(
        self,
        connection: Connection,
        model: str,
        source: AsyncIterable[Item] | Iterable[Item],
        options: reward_pb2.ScoreOptions,
        limits: Limits,
        *,
        timeout: float | Unset | None,
        in_flight: int,
    ) -> None:
        self._connection = connection
        self._model = model
        self._source = source
        self._options = options
        self._limits = limits
        self._timeout = timeout
        self._room = asyncio.Semaphore(in_flight)
        self._pending: dict[int, _Pending] = {}
        self._outbox: deque[int] = deque()
        self._wake = asyncio.Event()
        self._fed = False
        self._progress = False
        self._broken: GuerdonError | None = None
        """Why the last stream broke, until one is answered."""
        self._results: asyncio.Queue[StreamResult | _Failure | None] = asyncio.Queue()

    async def results(self) -> AsyncGenerator[StreamResult, None]:
        """Results as they come.

        Raises:
            GuerdonError: no stream can be had any more.
            Exception: whatever the source raised.
        """
        tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._serve())]
        try:
            while True:
                result = await self._results.get()
                if result is None:
                    return
                if isinstance(result, _Failure):
                    raise result.error
                self._room.release()
                yield result
        finally:
            await cancel(tasks)
            for pending in self._pending.values():
                _stop_timers(pending)

    async def _feed(self) -> None:
        """Take items from the source while there is room."""
        try:
            index = 0
            source = aiter(_as_async(self._source))
            while True:
                await self._room.acquire()
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    break
                self._take(index, item)
                index += 1
        except Exception as error:
            self._results.put_nowait(_Failure(error))
        finally:
            self._fed = True
            self._wake.set()

    def _take(self, index: int, item: Item) -> None:
        deadline = self._connection.deadline(self._timeout)
        backoff = Backoff(self._connection.retry, self._connection.clock, deadline)
        pending = _Pending(index, item, deadline, backoff)
        self._pending[index] = pending
        try:
            self._check(index, item)
        except GuerdonError as error:
            self._fail(pending, error)
            return
        remaining = deadline.remaining()
        if remaining is not None:
            self._later(
                pending, remaining, lambda: self._fail(pending, deadline.expired(self._broken))
            )
        self._send(index)

    def _check(self, index: int, item: Item) -> None:
        where = f"items[{index}]"
        if not isinstance(item, Item):
            raise invalid(where, f"must be an Item, not {type(item).__name__}")
        size = _wire.prompt_bytes(item.prompt, f"{where}.prompt")
        for place, response in enumerate(item.responses):
            size += _wire.response_bytes(response, f"{where}.responses[{place}]")
        if size > self._limits.max_message_bytes:
            limit = self._limits.max_message_bytes
            raise invalid(where, f"takes {size} bytes, the limit is {limit}")

    def _send(self, index: int) -> None:
        self._outbox.append(index)
        self._wake.set()

    def _later(self, pending: _Pending, seconds: float, act: Any) -> None:
        loop = asyncio.get_running_loop()
        pending.timers.append(loop.call_later(max(0.0, seconds), act))

    async def _serve(self) -> None:
        """Streams, one after the other, until everything is answered.

        When nothing is answered for as long as an item may take, that is the end.
        """
        connection = self._connection
        outage: tuple[float, Deadline, Backoff] | None = None
        try:
            while not await self._finished_or_work():
                self._progress = False
                self._broken = error = await self._one_stream()
                if error is None or self._progress:
                    outage = None
                if error is None:
                    continue
                if outage is None:
                    deadline = connection.deadline(self._timeout)
                    backoff = Backoff(connection.retry, connection.clock, deadline)
                    outage = connection.clock.now(), deadline, backoff
                since, deadline, backoff = outage
                delay = backoff.next(error)
                if delay is None:
                    raise error
                connection.note_waiting(error, since, deadline)
                await connection.clock.sleep(delay)
            self._results.put_nowait(None)
        except Exception as error:
            self._results.put_nowait(_Failure(error))

    @property
    def _done(self) -> bool:
        return self._fed and not self._pending

    async def _finished_or_work(self) -> bool:
        """Wait until there is something to send (False) or nothing will come any more (True)."""
        while not self._done:
            if self._outbox:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    async def _one_stream(self) -> GuerdonError | None:
        """Send and receive until the end, or until the stream breaks.

        Returns:
            Why it broke, if it did.
        """
        try:
            stub = reward_pb2_grpc.RewardServiceStub(await self._connection.channel())
        except Unavailable as unavailable:
            return unavailable
        call = stub.ScoreStream(metadata=self._connection.metadata)
        status = ServerStatus(call)
        sent: dict[int, None] = {}
        writer = asyncio.create_task(self._write(call, sent))
        error: GuerdonError | None = None
        try:
            async for reply in call:
                self._progress, self._broken = True, None
                self._receive(reply, sent)
        except grpc.aio.AioRpcError as exc:
            error = self._connection.error(status.error(exc))
            error.__cause__ = exc
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            # The writer has ended the call, or the channel was closed under it.
            error = self._connection.ended()
        finally:
            call.cancel()
            await cancel([writer])
        unanswered = [index for index in sent if index in self._pending]
        self._outbox.extendleft(reversed(unanswered))
        if error is None and unanswered:
            error = Unavailable("the server ended the stream before everything was answered")
        return None if self._done else error

    async def _write(self, call: Any, sent: dict[int, None]) -> None:
        """Send what is in the outbox; end the stream when nothing will come any more."""
        # A broken stream makes writing fail in several ways; its reader knows why it broke.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            while not await self._finished_or_work():
                pending = self._pending.get(self._outbox.popleft())
                if pending is None:
                    continue  # its time ran out while it waited here
                sent[pending.index] = None
                await call.write(self._request(pending))
            await call.done_writing()
            if sent:
                call.cancel()  # answers that come too late are not waited for

    def _request(self, pending: _Pending) -> reward_pb2.ScoreStreamRequest:
        request = reward_pb2.ScoreStreamRequest(
            request_id=str(pending.index),
            model=self._model,
            item=_wire.item(pending.item),
            options=self._options,
        )
        remaining = pending.deadline.remaining()
        if remaining is not None:
            request.timeout.CopyFrom(_wire.duration(remaining))
        return request

    def _receive(self, reply: reward_pb2.ScoreStreamResponse, sent: dict[int, None]) -> None:
        index = int(reply.request_id) if reply.request_id.isdecimal() else -1
        pending = self._pending.get(index)
        if pending is None or index not in sent:
            return  # too late: the item's time is over
        del sent[index]
        kind = reply.WhichOneof("result")
        if kind == "scores":
            self._succeed(pending, reply.scores)
        elif kind == "error":
            self._retry_or_fail(pending, from_status(reply.error))
        else:
            self._fail(pending, Internal("the server sent neither scores nor an error"))

    def _succeed(self, pending: _Pending, scored: reward_pb2.StreamedScores) -> None:
        item = pending.item
        try:
            scores = _wire.item_scores(scored.item, len(item.responses), item.id).scores
            info = _wire.info(scored.info)
        except GuerdonError as error:
            self._fail(pending, error)
            return
        self._finish(
            pending,
            StreamResult(
                index=pending.index,
                id=item.id,
                scores=scores,
                info=info,
                timing=_wire.timing(scored.timing),
            ),
        )

    def _retry_or_fail(self, pending: _Pending, error: GuerdonError) -> None:
        delay = pending.backoff.next(error)
        if delay is None:
            self._fail(pending, error)
        else:
            self._later(pending, delay, lambda: self._send(pending.index))

    def _fail(self, pending: _Pending, error: GuerdonError) -> None:
        id = pending.item.id if isinstance(pending.item, Item) else ""
        self._finish(pending, StreamResult(index=pending.index, id=id, error=error))

    def _finish(self, pending: _Pending, result: StreamResult) -> None:
        _stop_timers(pending)
        del self._pending[pending.index]
        self._results.put_nowait(result)
        self._wake.set()


def _stop_timers(pending: _Pending) -> None:
    for timer in pending.timers:
        timer.cancel()


async def _as_async(source: AsyncIterable[Item] | Iterable[Item]) -> AsyncIterator[Item]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item
            await asyncio.sleep(0)  # a long list is not to keep replies waiting
