"""Whatever bytes come, the caller is told of its own mistake and the sampler serves on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.sampler_service import (
    WEIGHTS,
    Harness,
    begin,
    chunk,
    commit,
    item,
    request,
    start_sampler,
)

from guerdon.v1 import policy_pb2

MISTAKES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Outside:
    """The sampler on a loop of its own, and plain calls from here."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self._channel = grpc.insecure_channel(f"127.0.0.1:{harness.ports.port}")
        path = "/guerdon.v1.PolicyService/"
        self._generate = self._channel.unary_stream(f"{path}Generate")
        self._update = self._channel.stream_unary(f"{path}UpdateWeights")

    def generate(self, data: bytes) -> tuple[grpc.StatusCode, list[bytes]]:
        call = self._generate(data, timeout=10)
        try:
            return grpc.StatusCode.OK, list(call)
        except grpc.RpcError as error:
            return error.code(), []

    def update(self, steps: list[bytes]) -> grpc.StatusCode:
        try:
            self._update(iter(steps), timeout=10)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    found: list[Harness] = []
    started, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        async with start_sampler() as harness:
            found.append(harness)
            loops.append(asyncio.get_running_loop())
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield Outside(found[0])
    loops[0].call_soon_threadsafe(ended.set)
    thread.join(20)


def mutate(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """The bytes with some of them changed."""
    found = bytearray(data)
    for place, value in cuts:
        if found:
            found[place % len(found)] = value
    return bytes(found)


CHANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOOD = request(item(1, 2, 3, n=2, id="some id", seed=7), item(9), temperature=0.7)


@FUZZ
@given(data=st.binary(max_size=200) | CHANGES.map(lambda c: mutate(GOOD.SerializeToString(), c)))
def test_any_bytes_to_generate(outside: Outside, data: bytes) -> None:
    code, replies = outside.generate(data)
    assert code in MISTAKES
    if code is grpc.StatusCode.OK:
        asked = policy_pb2.GenerateRequest.FromString(data)
        found = [policy_pb2.GenerateResponse.FromString(reply) for reply in replies]
        found = [reply for reply in found if not reply.progress]
        assert sorted((r.item, r.sample) for r in found) == [
            (i, k) for i, each in enumerate(asked.items) for k in range(each.n or 1)
        ]
    assert outside.harness.server._sampler.admission.held == 0


def steps_of() -> list[bytes]:
    version = 10**6
    return [
        step.SerializeToString()
        for step in (
            begin(version),
            chunk(0, 0, WEIGHTS[:32]),
            chunk(1, 0, WEIGHTS[32:]),
            commit(),
        )
    ]


@FUZZ
@given(
    order=st.lists(st.integers(0, 3), max_size=6),
    which=st.integers(0, 5),
    changes=CHANGES,
    junk=st.binary(max_size=30),
)
def test_any_steps_to_an_update(
    outside: Outside, order: list[int], which: int, changes: Any, junk: bytes
) -> None:
    before = outside.harness.engine.version
    whole = steps_of()
    steps = [whole[i] for i in order]
    if which < len(steps):
        steps[which] = mutate(steps[which], changes) if changes else junk
    code = outside.update(steps)
    assert code in MISTAKES
    engine = outside.harness.engine
    assert engine.behaviour.staged == 0
    if code is not grpc.StatusCode.OK:
        assert engine.version == before
    else:
        assert engine.sha256 != b""
        with contextlib.suppress(AttributeError):
            engine.version = 0  # so that the next one is newer
    assert outside.generate(GOOD.SerializeToString())[0] is grpc.StatusCode.OK
