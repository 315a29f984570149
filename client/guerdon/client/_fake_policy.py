"""The fake policy sampler; see `guerdon.client.testing`."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from guerdon.client import _wire
from guerdon.client._fake import Refused, make_status
from guerdon.client._loop import run
from guerdon.client._policy_wire import size_of
from guerdon.client.policy_types import TensorSpec
from guerdon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

Policy = Callable[[Sequence[int], int | None, int], tuple[Sequence[int], Sequence[float]]]
"""Takes the prompt's ids, the item's seed and the completion's number; returns token ids and
their log-probabilities."""

_SERVICE = "guerdon.v1.PolicyService"


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedUpdate:
    """Weights that came in and were taken."""

    version: int
    reset: bool
    specs: tuple[TensorSpec, ...]
    tensors: dict[str, bytes]
    """By name; empty for a shared path."""
    path: str
    canaries: tuple[tuple[list[int], list[float]], ...]


@dataclass(slots=True)
class _Fault:
    status: status_pb2.Status
    times: int
    method: str | None


@dataclass(slots=True)
class _State:
    """What a process of its own would hold: gone after `restart`."""

    version: int = 0
    sha256: bytes = b""
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    epoch: int = 0
    """Counts updates with `reset`: generation of an earlier one is aborted."""
    running: int = 0
    updating: bool = False


class FakePolicyServer:
    """A FAKE policy sampler: draws what you say, and fails when you say.

    Use it as a context manager, `with` or `async with`. Versions, spans, updates and refusals
    are those of `guerdon.v1.PolicyService`; no model is behind them.

    Args:
        policy: draws a completion. By default: 1 to `max_tokens` random ids from 3 to 99, each
            with probability 1/97, and then the end token 2 where there is room.
        delay: seconds that each completion takes, drawn uniformly between the two.
        eos: the token that ends a completion.
        dtype: of the weights that it asks for.
        limit: most completions in flight.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        delay: tuple[float, float] = (0.0, 0.0),
        eos: int = 2,
        dtype: str = "float32",
        limit: int = 100_000,
    ) -> None:
        self._policy = policy
        self._delay = delay
        self._chance = random.Random(0)  # noqa: S311 - a fake
        self.eos = eos
        self.dtype = dtype
        self.limit = limit
        self.calls: list[tuple[str, Any]] = []
        """Method and message of every call that came in; for updates, the `BeginUpdate`."""
        self.updates: list[ReceivedUpdate] = []
        """Weights that were taken."""
        self.drawn = 0
        """Completions that were sent."""
        self._state = _State()
        self._faults: deque[_Fault] = deque()
        self._breaks: deque[int] = deque()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    # Running

    @property
    def target(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._port}"

    @property
    def version(self) -> int:
        """Of the weights that serve."""
        return self._state.version

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        run(self.start())
        return self

    def __exit__(self, *exc_info: object) -> None:
        run(self.stop())

    async def start(self) -> None:
        """Listen as a fresh process, with version 0; on the port of before, if there was one."""
        self._state = _State()
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(_Policy(self), server)
        health = health_aio.HealthServicer()
        for name in ("", _SERVICE):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Break every call, and be away."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def restart(self) -> None:
        """Break every call, and come back with version 0."""
        await self.stop()
        await self.start()

    # Faults

    def fail(
        self,
        code: grpc.StatusCode,
        message: str = "injected by the test",
        *,
        times: int = 1,
        method: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Answer the next calls (of a method: Generate, UpdateWeights, GetPolicy) with an error."""
        refused = _refused(code, message, retry_after=retry_after)
        self._faults.append(_Fault(refused.status, times, method))

    def break_streams(self, *, after: int, times: int = 1) -> None:
        """End the next Generate calls with UNAVAILABLE, after so many completions each."""
        self._breaks.extend([after] * times)

    # Used by the service

    def receive(self, method: str, request: Any) -> None:
        self.calls.append((method, request))
        for fault in self._faults:
            if fault.times > 0 and fault.method in (None, method):
                fault.times -= 1
                raise Refused(fault.status)

    def take_break(self) -> int | None:
        return self._breaks.popleft() if self._breaks else None

    def draw(
        self, prompt: Sequence[int], seed: int | None, sample: int, most: int
    ) -> tuple[Sequence[int], Sequence[float]]:
        if self._policy is not None:
            ids, logprobs = self._policy(prompt, seed, sample)
            return ids[:most], logprobs[:most]
        made = None if seed is None else f"{seed}/{sample}/{list(prompt)}"
        chance = self._chance if made is None else random.Random(made)  # noqa: S311
        ids = [chance.randrange(3, 100) for _ in range(chance.randint(1, most))]
        if len(ids) < most:
            ids.append(self.eos)
        return ids, [-4.57471] * len(ids)

    async def wait(self) -> None:
        low, high = self._delay
        await asyncio.sleep(self._chance.uniform(low, high) if high else 0)


class _Policy(policy_pb2_grpc.PolicyServiceServicer):
    """PolicyService, answered by the fake."""

    def __init__(self, fake: FakePolicyServer) -> None:
        self._fake = fake
        self._state = fake._state

    async def Generate(  # type: ignore[override] # grpc.aio's other way: context.write
        self, request: Any, context: Any
    ) -> None:
        fake, state = self._fake, self._state
        left, epoch = fake.take_break(), state.epoch
        tasks: list[asyncio.Task[policy_pb2.GenerateResponse]] = []
        try:
            self._check(request)
            for place, item in enumerate(request.items):
                tasks += [
                    asyncio.create_task(self._complete(request, place, item, sample))
                    for sample in range(item.n or 1)
                ]
            for done in asyncio.as_completed(tasks):
                reply = await done
                if epoch != state.epoch:
                    raise _refused(grpc.StatusCode.ABORTED, "an update began a new history")
                if left == 0:
                    raise _refused(grpc.StatusCode.UNAVAILABLE, "broken by the test")
                left = None if left is None else left - 1
                fake.drawn += 1
                await context.write(reply)
            if left is not None:
                raise _refused(grpc.StatusCode.UNAVAILABLE, "broken by the test")
        except Refused as refused:
            await _abort(context, refused.status)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self, request: Any) -> None:
        fake, state = self._fake, self._state
        fake.receive("Generate", request)
        if not request.items or not request.options.max_tokens:
            raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "items and max_tokens are required")
        if state.version < request.min_version:
            raise _refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the sampler serves version {state.version}, older than {request.min_version}",
            )
        asked = sum(item.n or 1 for item in request.items)
        if state.running + asked > fake.limit:
            raise _refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", retry_after=0.05)

    async def _complete(
        self, request: Any, place: int, item: Any, sample: int
    ) -> policy_pb2.GenerateResponse:
        fake, state = self._fake, self._state
        state.running += 1
        try:
            first = state.version
            await fake.wait()
            last = state.version  # an update may have come in between
        finally:
            state.running -= 1
        prompt = _ids(item.prompt)
        seed = item.seed if item.HasField("seed") else None
        ids, logprobs = fake.draw(prompt, seed, sample, request.options.max_tokens)
        reply = policy_pb2.GenerateResponse(
            item=place, id=item.id, sample=sample, token_ids=ids, logprobs=logprobs,
            prompt_token_ids=prompt,
            finish_reason=policy_pb2.FINISH_REASON_STOP
            if ids[-1] == fake.eos
            else policy_pb2.FINISH_REASON_LENGTH,
        )  # fmt: skip
        middle = len(ids) // 2 if last != first else 0
        if middle:
            reply.spans.add(version=first, start=0, end=middle)
        reply.spans.add(version=last, start=middle, end=len(ids))
        if request.return_text:
            reply.text = " ".join(str(i) for i in ids)
        return reply

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> Any:
        state = self._state
        if state.updating:
            await _abort(context, make_status(grpc.StatusCode.ABORTED, "another update", []))
        state.updating = True
        try:
            return await self._update(request_iterator)
        except Refused as refused:
            await _abort(context, refused.status)
        finally:
            state.updating = False

    async def _update(self, requests: Any) -> policy_pb2.UpdateWeightsResponse:
        fake, state = self._fake, self._state
        begin, tensors, commit = await _receive(requests, fake)
        digest = hashlib.sha256()
        for spec in begin.tensors:
            digest.update(tensors.get(spec.name, b""))
        if begin.HasField("stream") and digest.digest() != commit.sha256:
            raise _refused(grpc.StatusCode.FAILED_PRECONDITION, "the checksum is wrong")
        if not begin.reset and begin.version <= state.version:
            raise _refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"begin.version: is {begin.version}, it must be over {state.version}",
            )
        state.version, state.sha256 = begin.version, commit.sha256
        state.epoch += begin.reset
        fake.updates.append(
            ReceivedUpdate(
                begin.version, begin.reset, tuple(_spec(s) for s in begin.tensors), tensors,
                begin.shared_path.path,
                tuple((list(c.token_ids), list(c.logprobs)) for c in commit.canaries),
            )
        )  # fmt: skip
        tokens = sum(len(c.logprobs) for c in commit.canaries)
        return policy_pb2.UpdateWeightsResponse(version=begin.version, canary_tokens=tokens)

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        fake, state = self._fake, self._state
        try:
            fake.receive("GetPolicy", request)
        except Refused as refused:
            await _abort(context, refused.status)
        return policy_pb2.GetPolicyResponse(
            model="fake", instance=state.instance, weight_version=state.version,
            weight_sha256=state.sha256, dtype=fake.dtype, max_tokens=2**20, vocab_size=2**20,
            eos_token_ids=[fake.eos], running=state.running, limit=fake.limit, shared_path=True,
        )  # fmt: skip


async def _receive(requests: Any, fake: FakePolicyServer) -> tuple[Any, dict[str, bytes], Any]:
    """The messages of an update, in their order."""
    begin: Any = None
    tensors: dict[str, bytearray] = {}
    async for request in requests:
        step = request.WhichOneof("step")
        if (step == "begin") != (begin is None):
            raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "step: is out of order")
        if step == "begin":
            begin = request.begin
            fake.receive("UpdateWeights", begin)
        elif step == "chunk":
            data = tensors.setdefault(begin.tensors[request.chunk.tensor].name, bytearray())
            if request.chunk.offset != len(data):
                raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "chunk.offset: is out of order")
            data += request.chunk.data
        else:
            _check_sizes(begin, tensors)
            return begin, {name: bytes(data) for name, data in tensors.items()}, request.commit
    raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before its commit")


def _check_sizes(begin: Any, tensors: dict[str, bytearray]) -> None:
    if not begin.HasField("stream"):
        return
    for spec in begin.tensors:
        if len(tensors.get(spec.name, b"")) != size_of(_spec(spec)):
            raise _refused(grpc.StatusCode.INVALID_ARGUMENT, f"{spec.name}: bytes are missing")


def _spec(message: policy_pb2.TensorSpec) -> TensorSpec:
    return TensorSpec(message.name, message.dtype, tuple(message.shape))


def _ids(prompt: common_pb2.Prompt) -> list[int]:
    """Made-up ids for a prompt that has none."""
    if prompt.HasField("token_ids"):
        return list(prompt.token_ids.ids)
    return [3 + byte % 97 for byte in prompt.SerializeToString()]


def _refused(code: grpc.StatusCode, message: str, *, retry_after: float | None = None) -> Refused:
    details: list[Message] = []
    if retry_after is not None:
        details = [error_details_pb2.RetryInfo(retry_delay=_wire.duration(retry_after))]
    return Refused(make_status(code, message, details))


async def _abort(context: Any, status: status_pb2.Status) -> None:
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, status.message, trailers)
