"""The service of the fake policy sampler: versions, spans, updates and refusals as the real one's.

`tests/client/test_policy_contract.py` holds both to the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2

from guerdon.client._policy_wire import tensor_bytes
from guerdon.client.errors import InvalidArgument
from guerdon.client.policy_types import TensorSpec
from guerdon.client.testing._server import FakeRefusal, abort, refused
from guerdon.together import cancel
from guerdon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

if TYPE_CHECKING:
    from guerdon.client.testing._policy_server import FakePolicyServer


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedUpdate:
    """Weights that came in and were taken."""

    version: int
    reset: bool
    specs: tuple[TensorSpec, ...]
    tensors: dict[str, bytes]
    """Each tensor's bytes by its name; empty for a shared path."""
    path: str
    canaries: tuple[tuple[list[int], list[float]], ...]


@dataclass(slots=True)
class FakeState:
    """What a process of its own would hold: gone after a restart."""

    history: list[int] = field(default_factory=lambda: [0])
    """Every version that served, in order."""
    sha256: bytes = b""
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    running: int = 0
    updating: bool = False
    resets: int = 0
    drawing: set[asyncio.Future[None]] = field(default_factory=set)
    """Completions that take their time."""

    @property
    def version(self) -> int:
        return self.history[-1]

    async def take_time(self, seconds: float) -> None:
        """Wait as long as a completion takes, or until an update with `reset`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, done)
        self.drawing.add(done)
        try:
            await done
        finally:
            timer.cancel()
            self.drawing.discard(done)

    def switch(self, version: int, sha256: bytes, *, reset: bool) -> None:
        """Serve new weights."""
        self.history.append(version)
        self.sha256 = sha256
        self.resets += reset
        for done in self.drawing if reset else ():
            _wake(done)


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class FakePolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """PolicyService, answered by the fake."""

    def __init__(self, fake: FakePolicyServer, state: FakeState) -> None:
        self._fake = fake
        self._state = state

    async def Generate(  # type: ignore[override] # grpc.aio's other way: context.write
        self, request: Any, context: Any
    ) -> None:
        fake, left = self._fake, self._fake.take_break()
        tasks: list[asyncio.Task[policy_pb2.GenerateResponse]] = []
        try:
            self._check(request)
            samples = [(i, k) for i, item in enumerate(request.items) for k in range(item.n or 1)]
            if request.report_progress:
                await context.write(_progress((*each, 0) for each in samples))
            tasks += [
                asyncio.create_task(self._complete(request, place, request.items[place], sample))
                for place, sample in samples
            ]
            for done in asyncio.as_completed(tasks):
                reply = await done
                if left == 0:
                    raise refused(grpc.StatusCode.UNAVAILABLE, "broken by the test")
                left = None if left is None else left - 1
                fake.drawn += 1
                if request.report_progress:
                    await context.write(
                        _progress([(reply.item, reply.sample, len(reply.token_ids))])
                    )
                await context.write(reply)
            if left is not None:
                raise refused(grpc.StatusCode.UNAVAILABLE, "broken by the test")
        except FakeRefusal as error:
            await abort(context, error.status)
        finally:
            await cancel(tasks)

    def _check(self, request: Any) -> None:
        fake, state = self._fake, self._state
        fake.receive("Generate", request)
        if not request.items:
            raise _wrong("items", "at least one is required")
        if not request.options.max_tokens:
            raise _wrong("options.max_tokens", "is required, and must be at least 1")
        if request.options.stop:
            raise _wrong("options.stop", "is not looked for by this fake")
        if state.version < request.min_version:
            raise refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the sampler serves version {state.version}, older than {request.min_version}",
            )
        for place, item in enumerate(request.items):
            if item.drawn and item.drawn >= len(item.prompt.token_ids.ids):
                raise _wrong(f"items[{place}].drawn", "must be less than the prompt's token ids")
        asked = sum(item.n or 1 for item in request.items)
        if asked > fake.limit:
            raise _wrong("items", f"they ask for {asked} completions, the limit is {fake.limit}")
        if state.running + asked > fake.limit:
            raise refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", retry_after=0.05)

    async def _complete(
        self, request: Any, place: int, item: Any, sample: int
    ) -> policy_pb2.GenerateResponse:
        fake, state = self._fake, self._state
        state.running += 1
        first, resets = len(state.history) - 1, state.resets
        try:
            await fake.wait()
        finally:
            state.running -= 1
        if state.resets != resets:
            raise refused(grpc.StatusCode.ABORTED, "an update with reset ended the generation")
        prompt = _ids(item.prompt)
        seed = item.seed if item.HasField("seed") else None
        ids, logprobs = fake.draw(prompt, seed, sample, request.options.max_tokens)
        said = [*prompt[len(prompt) - item.drawn :], *ids]
        if request.skip_special_tokens:
            said = [token for token in said if token != fake.eos]
        reply = policy_pb2.GenerateResponse(
            item=place,
            id=item.id,
            sample=sample,
            token_ids=ids,
            logprobs=logprobs,
            prompt_token_ids=prompt,
            finish_reason=policy_pb2.FINISH_REASON_STOP
            if ids[-1] == fake.eos
            else policy_pb2.FINISH_REASON_LENGTH,
            text=" ".join(map(str, said)) if request.return_text else "",
        )
        reply.spans.extend(_spans(state.history[first:], len(ids)))
        return reply

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> Any:
        try:
            return await self._update(request_iterator)
        except FakeRefusal as error:
            await abort(context, error.status)

    async def _update(self, requests: Any) -> policy_pb2.UpdateWeightsResponse:
        fake, state = self._fake, self._state
        step = await anext(aiter(requests), None)
        if step is None:
            raise _wrong("commit", "is required: the stream ended before it")
        if not step.HasField("begin"):
            raise _wrong("begin" if step.WhichOneof("step") else "step", "is required first")
        fake.receive("UpdateWeights", step.begin)
        specs = _check_begin(step.begin, state.version, fake.tensors)
        if state.updating:
            raise refused(grpc.StatusCode.ABORTED, "another update is under way")
        state.updating = True
        try:
            tensors, commit = await _receive(requests, step.begin, specs)
        finally:
            state.updating = False
        return self._switch(step.begin, specs, tensors, commit)

    def _switch(
        self, begin: Any, specs: Sequence[TensorSpec], tensors: dict[str, bytes], commit: Any
    ) -> policy_pb2.UpdateWeightsResponse:
        fake = self._fake
        fault = fake.take_commit_fault()
        if fault is None or fault.applied:
            self._state.switch(begin.version, commit.sha256, reset=begin.reset)
            canaries = tuple((list(c.token_ids), list(c.logprobs)) for c in commit.canaries)
            fake.updates.append(
                ReceivedUpdate(
                    begin.version,
                    begin.reset,
                    tuple(specs),
                    tensors,
                    begin.shared_path.path,
                    canaries,
                )
            )
        if fault is not None:
            raise FakeRefusal(fault.status)
        tokens = sum(len(c.logprobs) for c in commit.canaries)
        return policy_pb2.UpdateWeightsResponse(version=begin.version, canary_tokens=tokens)

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        fake, state = self._fake, self._state
        try:
            fake.receive("GetPolicy", request)
        except FakeRefusal as error:
            await abort(context, error.status)
        return policy_pb2.GetPolicyResponse(
            model="fake",
            instance=state.instance,
            weight_version=state.version,
            weight_sha256=state.sha256,
            dtype=fake.dtype,
            max_tokens=2**20,
            vocab_size=2**20,
            eos_token_ids=[fake.eos],
            running=state.running,
            limit=fake.limit,
            shared_path=True,
        )


def _progress(completions: Iterable[tuple[int, int, int]]) -> policy_pb2.GenerateResponse:
    """How far completions have come, each by item, sample and tokens."""
    reply = policy_pb2.GenerateResponse()
    for item, sample, tokens in completions:
        reply.progress.add(item=item, sample=sample, tokens=tokens)
    return reply


def _spans(versions: Sequence[int], tokens: int) -> list[policy_pb2.VersionSpan]:
    """The tokens in equal parts, one for each version; the last ones' where tokens are few."""
    versions = versions[-tokens:]
    edges = [tokens * i // len(versions) for i in range(len(versions) + 1)]
    return [
        policy_pb2.VersionSpan(version=version, start=edges[i], end=edges[i + 1])
        for i, version in enumerate(versions)
    ]


def _check_begin(
    begin: Any, serving: int, own: Sequence[TensorSpec] | None
) -> tuple[TensorSpec, ...]:
    """The tensors that will come."""
    if begin.WhichOneof("source") is None:
        raise _wrong("begin.source", "one of stream, shared_path and nccl is required")
    if begin.version < 1:
        raise _wrong("begin.version", "must be at least 1")
    if begin.version <= serving and not begin.reset:
        raise _wrong("begin.version", f"is {begin.version}, and version {serving} serves")
    if begin.HasField("nccl"):
        raise refused(grpc.StatusCode.FAILED_PRECONDITION, "there is no GPU here")
    if begin.HasField("stream") and not begin.tensors:
        raise _wrong("begin.tensors", "at least one is required")
    specs = tuple(TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in begin.tensors)
    _check_specs(specs, own)
    return specs


def _check_specs(specs: Sequence[TensorSpec], own: Sequence[TensorSpec] | None) -> None:
    seen: set[str] = set()
    for place, spec in enumerate(specs):
        if spec.name in seen:
            raise _wrong(f"begin.tensors[{place}].name", f"{spec.name} is there twice")
        seen.add(spec.name)
        try:
            tensor_bytes(spec)
        except InvalidArgument as error:
            raise _wrong(f"begin.tensors[{place}].dtype", error.message) from error
    if own is not None and specs:
        wrong = sorted({spec.name for spec in set(specs) ^ set(own)})
        if wrong:
            raise refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"names, shapes or dtypes are not the policy's: {', '.join(wrong)}",
            )


async def _receive(
    requests: Any, begin: Any, specs: Sequence[TensorSpec]
) -> tuple[dict[str, bytes], Any]:
    """The tensors by name, and the commit."""
    tensors = [bytearray() for _ in specs]
    async for request in requests:
        kind = request.WhichOneof("step")
        if kind == "commit":
            _check_commit(begin, specs, tensors, request.commit)
            pairs = zip(specs, tensors, strict=True) if begin.HasField("stream") else ()
            return {spec.name: bytes(data) for spec, data in pairs}, request.commit
        if kind != "chunk" or not begin.HasField("stream"):
            raise _wrong(kind or "step", "comes out of order")
        _take_chunk(request.chunk, specs, tensors)
    raise _wrong("commit", "is required: the stream ended before it")


def _take_chunk(chunk: Any, specs: Sequence[TensorSpec], tensors: Sequence[bytearray]) -> None:
    if chunk.tensor >= len(specs):
        raise _wrong("chunk.tensor", f"is {chunk.tensor}, there are {len(specs)}")
    for before, spec in zip(tensors[: chunk.tensor], specs, strict=False):
        if len(before) != tensor_bytes(spec):
            raise _wrong("chunk.tensor", f"comes before {spec.name} is whole")
    data, spec = tensors[chunk.tensor], specs[chunk.tensor]
    if chunk.offset != len(data):
        raise _wrong("chunk.offset", f"of {spec.name} is {chunk.offset}, it must be {len(data)}")
    if len(data) + len(chunk.data) > tensor_bytes(spec):
        raise _wrong("chunk.data", f"goes past the end of {spec.name}")
    data += chunk.data


def _check_commit(
    begin: Any, specs: Sequence[TensorSpec], tensors: Sequence[bytearray], commit: Any
) -> None:
    if len(commit.sha256) != 32:
        raise _wrong("commit.sha256", "must have 32 bytes")
    if not begin.HasField("stream"):
        return
    digest = hashlib.sha256()
    for spec, data in zip(specs, tensors, strict=True):
        if len(data) != tensor_bytes(spec):
            raise refused(grpc.StatusCode.FAILED_PRECONDITION, f"{spec.name} lacks bytes")
        digest.update(data)
    if digest.digest() != commit.sha256:
        raise refused(grpc.StatusCode.FAILED_PRECONDITION, "the checksum is another one")


def _ids(prompt: common_pb2.Prompt) -> list[int]:
    """Made-up ids for a prompt that has none."""
    if prompt.HasField("token_ids"):
        return list(prompt.token_ids.ids)
    return [3 + byte % 97 for byte in prompt.SerializeToString()]


def _wrong(field: str, description: str) -> FakeRefusal:
    """The error that names a field."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    message = f"{field}: {description}"
    return refused(grpc.StatusCode.INVALID_ARGUMENT, message, [detail])
