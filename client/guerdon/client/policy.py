"""The asynchronous client of the policy sampler."""

# ruff: noqa: ASYNC109 - the timeout is the RPC's deadline, which travels to the server
from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

import grpc

from guerdon.client import _policy_wire as wire
from guerdon.client._connection import CLOSED, UNSET, Unset, being_cancelled
from guerdon.client._retry import Backoff, Deadline
from guerdon.client.aio import AsyncClient
from guerdon.client.errors import Cancelled, GuerdonError, from_rpc_error, invalid
from guerdon.client.policy_types import (
    Canary,
    Completion,
    GenerateItem,
    Nccl,
    PolicyInfo,
    SharedPath,
    TensorSpec,
    WeightUpdate,
)
from guerdon.v1 import policy_pb2, policy_pb2_grpc

CHUNK_BYTES = 1024 * 1024
Source = Iterable[Any] | SharedPath | Nccl


class AsyncPolicyClient(AsyncClient):
    """Draws completions from a policy sampler, and gives it new weights.

        async with AsyncPolicyClient("localhost:50052") as policy:
            async for completion in policy.generate([GenerateItem("What is rain?", n=4)],
                                                    max_tokens=64, return_text=True):
                print(completion.text)

    The arguments are those of `AsyncClient`. Every method raises `GuerdonError`.
    """

    async def generate(
        self,
        items: Sequence[GenerateItem],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        min_version: int = 0,
        return_text: bool = False,
        timeout: float | Unset | None = UNSET,
    ) -> AsyncGenerator[Completion, None]:
        """Completions as they finish, in any order; all of them, or an error.

        When the sampler breaks off, what has not come is asked for again. An item with a seed is
        asked for whole, and what had come is left out; one without goes on with as many draws as
        are missing, numbered on.

        Args:
            items: prompts, each with its number of completions.
            max_tokens: most tokens of a completion.
            temperature: 0 takes the likeliest token each time.
            top_p: keep the likeliest tokens of this mass; less than 1 biases importance ratios.
            top_k: keep so many likeliest tokens; 0 keeps all.
            stop_token_ids: end a completion, beside the model's own end tokens.
            ignore_eos: do not end at the model's own end tokens.
            min_version: raise `FailedPrecondition` if the weights are older.
            return_text: fill in `Completion.text`.
            timeout: seconds for all.
        """
        options = wire.options(
            max_tokens, temperature, top_p, top_k, stop_token_ids, ignore_eos=ignore_eos
        )
        pending = wire.Pending(items)
        connection = self._connection
        deadline = connection.deadline(timeout)
        backoff = Backoff(connection.retry, connection.clock, deadline)
        while not pending.complete:
            request = pending.request(options, min_version, return_text=return_text)
            try:
                stream = self._stream(request, deadline)
                async for reply in stream:
                    completion = pending.take(reply)
                    if completion is not None:
                        backoff.reset()
                        yield completion
                pending.check_complete()
            except GuerdonError as error:
                delay = backoff.next(error)
                if delay is None:
                    raise
                await connection.clock.sleep(delay)

    async def _stream(
        self, request: policy_pb2.GenerateRequest, deadline: Deadline
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        remaining = deadline.remaining()
        if remaining is not None and remaining <= 0:
            raise deadline.expired()
        stub = await self._stub()
        call = stub.Generate(request, timeout=remaining, metadata=self._connection.metadata)
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise Cancelled(CLOSED) from None
        finally:
            call.cancel()

    async def update_weights(
        self,
        version: int,
        source: Source,
        *,
        specs: Sequence[TensorSpec] = (),
        canaries: Sequence[Canary] = (),
        mean_tolerance: float = 0.0,
        reset: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        timeout: float | Unset | None = UNSET,
    ) -> WeightUpdate:
        """Replace the weights: all or nothing. Never repeated by itself.

        Args:
            version: of the new weights; greater than the one that serves, unless `reset`.
            source: the bytes of each tensor of `specs`, in their order (anything with the buffer
                protocol, little-endian and contiguous; taken one at a time); or where they are.
            specs: every tensor of the checkpoint; may be empty for a shared path.
            canaries: must get the given log-probabilities, or the update is refused.
            mean_tolerance: largest mean difference; 0 is the sampler's default.
            reset: begin a new history: any version is taken, and generation in flight is aborted.
            chunk_bytes: of a message.
            timeout: seconds for all.

        Raises:
            FailedPrecondition: it is refused, and the weights from before serve.
        """
        if chunk_bytes < 1:
            raise invalid("chunk_bytes", f"is {chunk_bytes}, it must be positive")
        deadline = self._connection.deadline(timeout)
        begin = wire.begin(version, source, specs, reset=reset)
        commit = policy_pb2.CommitUpdate(
            canaries=[wire.canary(c) for c in canaries], mean_tolerance=mean_tolerance
        )
        steps = _Steps(begin, source, specs, commit, chunk_bytes)
        stub = await self._stub()
        call = stub.UpdateWeights(
            steps.requests(), timeout=deadline.remaining(), metadata=self._connection.metadata
        )
        try:
            return wire.update(await call)
        except grpc.aio.AioRpcError as exc:
            raise steps.fault or from_rpc_error(exc) from exc
        except asyncio.CancelledError:
            if steps.fault is not None:
                raise steps.fault from None
            if being_cancelled():
                raise
            raise Cancelled(CLOSED) from None
        finally:
            call.cancel()

    async def get_policy(self, *, timeout: float | Unset | None = UNSET) -> PolicyInfo:
        """The policy, its version and its load."""
        request, deadline = policy_pb2.GetPolicyRequest(), self._connection.deadline(timeout)
        reply = await self._connection.call((await self._stub()).GetPolicy, request, deadline)
        return wire.policy_info(reply)

    async def _stub(self) -> policy_pb2_grpc.PolicyServiceAsyncStub:
        return policy_pb2_grpc.PolicyServiceStub(await self._connection.channel())


class _Steps:
    """The messages of an update; the checksum is made on the way."""

    def __init__(
        self,
        begin: policy_pb2.BeginUpdate,
        source: Source,
        specs: Sequence[TensorSpec],
        commit: policy_pb2.CommitUpdate,
        chunk_bytes: int,
    ) -> None:
        self._begin, self._source, self._specs = begin, source, specs
        self._commit, self._chunk_bytes = commit, chunk_bytes
        self.fault: BaseException | None = None
        """What went wrong on our side: the tensors could not be had, or do not fit."""

    async def requests(self) -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
        """Begin, chunks, commit. After a fault of ours there is no commit, so nothing changes."""
        try:
            yield policy_pb2.UpdateWeightsRequest(begin=self._begin)
            if isinstance(self._source, SharedPath):
                self._commit.sha256 = self._source.sha256
            elif not isinstance(self._source, Nccl):
                async for request in self._chunks(self._source):
                    yield request
            yield policy_pb2.UpdateWeightsRequest(commit=self._commit)
        except Exception as error:
            self.fault = error
            raise

    async def _chunks(
        self, source: Iterable[Any]
    ) -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
        digest, tensors = hashlib.sha256(), iter(source)
        for place, spec in enumerate(self._specs):
            # Making a tensor's bytes may copy from a device: not on the event loop.
            data = await asyncio.to_thread(_bytes, next(tensors, None), spec)
            await asyncio.to_thread(digest.update, data)
            for offset in range(0, len(data), self._chunk_bytes):
                piece = bytes(data[offset : offset + self._chunk_bytes])
                chunk = policy_pb2.TensorChunk(tensor=place, offset=offset, data=piece)
                yield policy_pb2.UpdateWeightsRequest(chunk=chunk)
        if next(tensors, None) is not None:
            raise invalid("source", f"has more tensors than the {len(self._specs)} of specs")
        self._commit.sha256 = digest.digest()


def _bytes(value: Any, spec: TensorSpec) -> memoryview:
    """A tensor's bytes, checked against its spec."""
    if value is None:
        raise invalid("source", f"ends before {spec.name}")
    view = memoryview(value).cast("B")
    expected = wire.size_of(spec)
    if len(view) != expected:
        raise invalid("source", f"{spec.name} has {len(view)} bytes, its spec says {expected}")
    return view
