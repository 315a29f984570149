"""The messages of an update's stream, one after the other, and what to make of silence."""

from __future__ import annotations

import asyncio
import time

import grpc

from guerdon.serving.calls import Call
from guerdon.serving.errors import DeadlinePassed, Interrupted, InvalidRequest, Unavailable
from guerdon.serving.process.lifecycle import Lifecycle
from guerdon.serving.wire.handlers import Context, decode
from guerdon.v1 import policy_pb2


class UpdateStream:
    """Reads the stream of one call of `UpdateWeights`.

    Args:
        idle_seconds: how long to wait for each message.
    """

    def __init__(
        self, context: Context, lifecycle: Lifecycle, call: Call, idle_seconds: float
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._call = call
        self._idle = idle_seconds

    async def begin(self) -> policy_pb2.BeginUpdate:
        """The first message, which must be `begin`."""
        step = await self.next()
        if step.WhichOneof("step") != "begin":
            raise InvalidRequest("begin", "is required first")
        return step.begin

    async def next(self) -> policy_pb2.UpdateWeightsRequest:
        """The next message.

        Raises:
            InvalidRequest: the stream ended before its commit, or it is no message.
            Interrupted: silence for too long.
            DeadlinePassed: the call's time is over.
            Unavailable: the server drains.
        """
        data = await self._read()
        if data is grpc.aio.EOF:
            raise InvalidRequest("commit", "is required: the stream ended before it")
        assert isinstance(data, bytes)
        step = decode(policy_pb2.UpdateWeightsRequest, data)
        if step.WhichOneof("step") is None:
            raise InvalidRequest("step", "one of begin, chunk and commit is required")
        return step

    async def _read(self) -> object:
        draining = asyncio.ensure_future(self._lifecycle.wait_draining())
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait(
                {reading, draining},
                timeout=self._patience(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reading.done():
                return reading.result()
        finally:
            draining.cancel()
            reading.cancel()
        if draining.done() and not draining.cancelled():
            raise Unavailable("the server is draining: the update is given up")
        if self._call.late:
            raise DeadlinePassed("the deadline passed before the update's commit")
        raise Interrupted(f"nothing came for {self._idle:g} s: the update is given up")

    def _patience(self) -> float:
        if self._call.deadline is None:
            return self._idle
        return min(self._idle, max(0.0, self._call.deadline - time.monotonic()))
