"""`UpdateWeights`: begin, chunks, commit. Whatever else comes leaves the old weights serving.

Nothing that serves is touched before the commit. From then on the update is brought to an
end even if its caller leaves: half of a switch would be worse than either end of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from guerdon.sampler.metrics import SamplerMetrics
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.shared_path import shared_files
from guerdon.sampler.types import PolicyEngine, PublishOrder, PublishResult, StagedWeights, Staging
from guerdon.sampler.wire import update_messages
from guerdon.serving.calls import Call
from guerdon.serving.errors import (
    DeadlinePassed,
    Interrupted,
    InvalidRequest,
    Unavailable,
    UpdateRefused,
)
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.wire.convert import duration
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


R = TypeVar("R")

logger = logging.getLogger(__name__)


class Busy(Interrupted):
    """Another update is under way."""


_OUTCOMES: Sequence[tuple[type[BaseException], str]] = (
    (InvalidRequest, "invalid"),
    (UpdateRefused, "refused"),
    (Busy, "busy"),
    (Interrupted, "abandoned"),
    (DeadlinePassed, "abandoned"),
    (asyncio.CancelledError, "abandoned"),
    (Unavailable, "abandoned"),
)


def update_outcome(error: BaseException) -> str:
    """How the metrics call the end of an update that failed."""
    return next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "failed")


class Updates:
    """Takes updates, one at a time.

    Args:
        allowed: whether weights may be replaced at all.
        shared_dirs: folders below which shared paths may lie.
        nccl: whether updates by NCCL are taken.
        idle_seconds: how long a trainer may be silent.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        metrics: SamplerMetrics,
        lifecycle: Lifecycle,
        limits: RequestLimits,
        *,
        allowed: bool,
        shared_dirs: Sequence[Path],
        nccl: bool,
        idle_seconds: float,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._limits = limits
        self._allowed = allowed
        self._shared_dirs = shared_dirs
        self._idle = idle_seconds
        self.shared_path = allowed and bool(shared_dirs)
        """Whether updates by shared path are allowed."""
        self.nccl = allowed and nccl
        """Whether updates by NCCL are possible."""
        self._under_way: int | None = None
        """The version that is being received or switched to."""

    async def take(self, context: Context, call: Call) -> policy_pb2.UpdateWeightsResponse:
        """Serve one call of `UpdateWeights`.

        Raises:
            ServiceError: the update was not published; the weights before it serve.
        """
        if not self._allowed:
            raise UpdateRefused("this sampler takes no updates (--no-updates)")
        stream = UpdateStream(context, self._lifecycle, call, self._idle)
        source, outcome = "none", ""
        try:
            opening = await stream.begin()
            update_messages.check_begin(opening, self._limits, self._engine.version)
            source = opening.WhichOneof("source") or "none"
            with self._alone(opening.version):
                reply = await self._receive(opening, stream, call)
            outcome = "published"
            return reply
        except BaseException as error:
            outcome = update_outcome(error)
            logger.warning("update not published (%s): %s", outcome, error)
            raise
        finally:
            self._metrics.updates.labels(source, outcome).inc()

    @contextmanager
    def _alone(self, version: int) -> Iterator[None]:
        """Keep other updates away.

        Raises:
            Busy: there is one.
        """
        if self._under_way is not None:
            raise Busy(f"an update to version {self._under_way} is under way")
        self._under_way = version
        try:
            yield
        finally:
            self._under_way = None

    async def _receive(
        self, opening: policy_pb2.BeginUpdate, stream: UpdateStream, call: Call
    ) -> policy_pb2.UpdateWeightsResponse:
        """Take everything up to the commit, then switch."""
        staging = await self._stage(opening)
        try:
            closing = await self._fill(staging, stream, opening)
            canaries = update_messages.canaries(closing, self._limits, self._engine.info)
            staged = await staging.finish(closing.sha256)
            receive = call.elapsed()
            order = PublishOrder(
                version=opening.version,
                reset=opening.reset,
                canaries=canaries,
                mean_tolerance=closing.mean_tolerance,
            )
            published = await _to_the_end(self._publish(staged, order, receive))
        finally:
            staging.close()
        return policy_pb2.UpdateWeightsResponse(
            version=opening.version,
            canary_tokens=published.canary_tokens,
            canary_mean_difference=published.canary_mean_difference,
            canary_max_difference=published.canary_max_difference,
            receive=duration(receive),
            pause=duration(published.pause_seconds),
        )

    async def _stage(self, opening: policy_pb2.BeginUpdate) -> Staging:
        """Begin a staging: the place of the tensors until they are checked."""
        specs = update_messages.tensor_specs(opening)
        source = opening.WhichOneof("source")
        if source == "shared_path":
            files = await asyncio.to_thread(
                shared_files, opening.shared_path.path, self._shared_dirs
            )
            return await self._engine.stage_files(files, specs)
        if source == "nccl":
            if not self.nccl:
                raise UpdateRefused("updates by NCCL are off, or this sampler has no GPU")
            return await self._engine.stage_nccl(update_messages.nccl_source(opening), specs)
        return await self._engine.stage_stream(specs)

    async def _fill(
        self, staging: Staging, stream: UpdateStream, opening: policy_pb2.BeginUpdate
    ) -> policy_pb2.CommitUpdate:
        """Take chunks until the commit."""
        streamed = opening.HasField("stream")
        while True:
            step = await stream.next()
            kind = step.WhichOneof("step")
            if kind == "commit":
                update_messages.check_commit(step.commit, checksum=not opening.HasField("nccl"))
                return step.commit
            if kind == "begin":
                raise InvalidRequest("begin", "comes once, first")
            if not streamed:
                raise InvalidRequest("chunk", "comes only where the source is stream")
            await staging.write(step.chunk.tensor, step.chunk.offset, step.chunk.data)
            self._metrics.update_bytes.inc(len(step.chunk.data))

    async def _publish(
        self, staged: StagedWeights, order: PublishOrder, receive: float
    ) -> PublishResult:
        """Switch, and count the update's figures."""
        metrics = self._metrics
        published = await self._engine.publish(staged, order)
        metrics.weight_version.set(order.version)
        if published.canary_tokens:
            metrics.canary_difference.labels("mean").set(published.canary_mean_difference)
            metrics.canary_difference.labels("max").set(published.canary_max_difference)
        seconds = metrics.update_seconds
        for phase, value in (
            ("receive", receive),
            ("load", published.load_seconds),
            ("canary", published.canary_seconds),
            ("pause", published.pause_seconds),
        ):
            seconds.labels(phase).observe(value)
        return published


async def _to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Do work that a caller who leaves doesn't stop."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            logger.info("the caller left while its update was published")
        raise
