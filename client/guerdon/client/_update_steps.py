"""The messages of a weight update, made as they are sent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from guerdon.client import _policy_wire as wire
from guerdon.client.errors import invalid
from guerdon.client.policy_types import Nccl, SharedPath, TensorSpec
from guerdon.v1 import policy_pb2

CHUNK_BYTES = 1024 * 1024
Source = Iterable[Any] | SharedPath | Nccl

_END = object()


class UpdateSteps:
    """The messages of one update; the checksum is made on the way."""

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
        tensors = _Tensors(source)
        loop = asyncio.get_running_loop()
        # Having a tensor may mean to copy it from a device: not on the event loop. One thread
        # for all, as an iterator may keep state of its thread (torch's grad mode, for one).
        pool = ThreadPoolExecutor(1, thread_name_prefix="guerdon-weights")
        try:
            for place, spec in enumerate(self._specs):
                data = await loop.run_in_executor(pool, tensors.next, spec)
                for offset in range(0, len(data), self._chunk_bytes):
                    piece = bytes(data[offset : offset + self._chunk_bytes])
                    chunk = policy_pb2.TensorChunk(tensor=place, offset=offset, data=piece)
                    yield policy_pb2.UpdateWeightsRequest(chunk=chunk)
                del data  # before the next is made
            self._commit.sha256 = await loop.run_in_executor(pool, tensors.finish)
        finally:
            pool.shutdown(wait=False)


class _Tensors:
    """Takes tensors one by one, and their checksum."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Any = None
        self._taken = 0
        self._digest = hashlib.sha256()

    def next(self, spec: TensorSpec) -> memoryview:
        """The next tensor's bytes, which must be those of a spec."""
        value = self._next()
        if value is _END:
            raise invalid("source", f"ends before {spec.name}")
        view, expected = _bytes(value, spec), wire.tensor_bytes(spec)
        if len(view) != expected:
            raise invalid("source", f"{spec.name} has {len(view)} bytes, its spec says {expected}")
        self._digest.update(view)
        self._taken += 1
        return view

    def finish(self) -> bytes:
        """The checksum, when there is nothing more."""
        if self._next() is not _END:
            raise invalid("source", f"has more tensors than the {self._taken} of specs")
        return self._digest.digest()

    def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._source)
        return next(self._iterator, _END)


def _bytes(value: Any, spec: TensorSpec) -> memoryview:
    try:
        view = memoryview(value)
        flat = view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError) as exc:
        raise invalid("source", f"{spec.name} is no contiguous bytes: {exc}") from exc
    if view.format.startswith((">", "!")):
        raise invalid("source", f"{spec.name} is big-endian, it must be little-endian")
    return flat
