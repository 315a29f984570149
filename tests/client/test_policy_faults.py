"""The policy client where things go wrong, and the faults that its fake sampler has to offer."""

# ruff: noqa: ASYNC110, SIM117 - it polls another process's state; nesting reads better

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.client import (
    Aborted,
    AsyncPolicyClient,
    Completion,
    DeadlineExceeded,
    FailedPrecondition,
    GenerateItem,
    Internal,
    InvalidArgument,
    Retry,
    TensorSpec,
    TokenIds,
    Unavailable,
)
from guerdon.client import _policy_wire as wire
from guerdon.client.testing import FakeClock, FakePolicyServer
from guerdon.v1 import policy_pb2

PROMPT = TokenIds((5, 6, 7))
SPECS = [TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "bfloat16", (4,))]
DATA = [np.arange(6, dtype=np.float32), np.arange(4, dtype=np.uint16)]
ONCE = Retry(attempts=1)


async def collect(client: AsyncPolicyClient, *items: GenerateItem, **options) -> list[Completion]:
    options.setdefault("max_tokens", 8)
    return [completion async for completion in client.generate(items, **options)]


# Generate


async def test_a_stream_that_breaks_when_all_has_come_is_whole() -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target, retry=ONCE) as client:
        server.break_streams(after=3)
        found = await collect(client, GenerateItem(PROMPT, n=3))
        assert sorted(c.sample for c in found) == [0, 1, 2]
        server.break_streams(after=2)
        with pytest.raises(Unavailable):
            await collect(client, GenerateItem(PROMPT, n=3))
    assert len(server.calls) == 2


async def test_tries_are_counted_from_the_last_completion_on() -> None:
    clock = FakeClock()
    async with FakePolicyServer() as server:
        retry = Retry(attempts=2)
        async with AsyncPolicyClient(server.target, retry=retry, clock=clock.clock) as client:
            server.break_streams(after=1, times=5)
            assert len(await collect(client, GenerateItem(PROMPT, n=6))) == 6
            server.break_streams(after=0, times=2)
            with pytest.raises(Unavailable):
                await collect(client, GenerateItem(PROMPT))


async def test_a_restart_in_the_middle_is_survived() -> None:
    async with FakePolicyServer(delay=(0, 0.2)) as server:
        async with AsyncPolicyClient(server.target, retry=Retry(attempts=50)) as client:
            found = []
            async for completion in client.generate([GenerateItem(PROMPT, n=8)], max_tokens=4):
                found.append(completion.sample)
                if len(found) == 3:
                    await server.restart()
    assert sorted(found) == list(range(8))


async def test_the_deadline_reaches_the_server_and_ends_the_call() -> None:
    async with FakePolicyServer(delay=(30, 30)) as server:
        async with AsyncPolicyClient(server.target) as client:
            with pytest.raises(DeadlineExceeded):
                await collect(client, GenerateItem(PROMPT, n=2), timeout=0.2)
            async with asyncio.timeout(10):
                while (await client.get_policy()).running:
                    await asyncio.sleep(0.01)


async def test_leaving_the_iteration_stops_the_call_at_once() -> None:
    waits = iter([0.0, 30.0, 30.0])
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:

        async def wait() -> None:
            await asyncio.sleep(next(waits))

        server.wait = wait  # type: ignore[method-assign]
        found = client.generate([GenerateItem(PROMPT, n=3)], max_tokens=4)
        await anext(found)
        await found.aclose()
        async with asyncio.timeout(10):
            while (await client.get_policy()).running:
                await asyncio.sleep(0.01)
    assert server.drawn == 1


ids = st.lists(st.integers(0, 2**32 - 1), max_size=4)
replies = st.builds(
    policy_pb2.GenerateResponse,
    item=st.integers(0, 3),
    sample=st.integers(0, 4),
    token_ids=ids,
    logprobs=st.lists(st.floats(-9, 0, width=32) | st.just(float("inf")), max_size=4),
    finish_reason=st.integers(0, 3),
    spans=st.lists(
        st.builds(
            policy_pb2.VersionSpan,
            version=st.integers(0, 2**63),
            start=st.integers(0, 4),
            end=st.integers(0, 4),
        ),
        max_size=3,
    ),
)


def good(item: int, sample: int) -> policy_pb2.GenerateResponse:
    return policy_pb2.GenerateResponse(
        item=item,
        sample=sample,
        token_ids=[3, 2],
        logprobs=[-1.0, 0.0],
        finish_reason=policy_pb2.FINISH_REASON_STOP,
        spans=[policy_pb2.VersionSpan(version=1, start=0, end=2)],
    )


sound = st.builds(good, st.integers(0, 2), st.integers(0, 3))
items = st.lists(
    st.builds(GenerateItem, st.just(PROMPT), st.integers(1, 4), st.none() | st.just(5)),
    min_size=1,
    max_size=3,
)


@given(items, st.lists(st.lists(sound | replies, max_size=12), max_size=4))
def test_whatever_is_sent_no_completion_comes_twice_or_unasked(asked: Any, streams: Any) -> None:
    pending = wire.Pending(asked)
    found: set[tuple[int, int]] = set()
    options = wire.options(8, 1.0, 1.0, 0, (), (), ignore_eos=False)
    for stream in streams:  # each is a try, broken where it ends
        if pending.complete:
            break
        request = pending.request(policy_pb2.GenerateRequest(options=options))
        whole = {place for place, item in enumerate(asked) if item.seed is not None}
        assert sum(i.n for i in request.items if not i.HasField("seed")) == sum(
            item.n for place, item in enumerate(asked) if place not in whole
        ) - sum(place not in whole for place, _ in found)
        try:
            for reply in stream:
                completion = pending.take(reply)
                if completion is not None:
                    key = (completion.item, completion.sample)
                    assert key not in found
                    assert 0 <= completion.sample < asked[completion.item].n
                    assert len(completion.token_ids) == len(completion.logprobs)
                    assert len(completion.versions) == len(completion.token_ids) > 0
                    found.add(key)
        except Internal:
            return
    assert pending.complete == (len(found) == sum(item.n for item in asked))


async def test_ids_that_no_vocabulary_has_are_refused() -> None:
    async with FakePolicyServer(lambda *_: ([2**31], [-1.0])) as server:
        async with AsyncPolicyClient(server.target) as client:
            with pytest.raises(Internal, match="which no vocabulary has"):
                await collect(client, GenerateItem(PROMPT))


# Updates


async def test_a_refusal_that_comes_while_messages_are_sent_is_told() -> None:
    """grpc.aio puts INTERNAL in its place now and then: not here in 300 updates."""
    async with FakePolicyServer(tensors=SPECS) as server:
        async with AsyncPolicyClient(server.target) as client:
            for _ in range(300):
                with pytest.raises(FailedPrecondition, match="not the policy's: a"):
                    await client.update_weights(1, DATA[1:], specs=SPECS[1:], chunk_bytes=1)
            assert len(server.calls) == 300


async def test_updates_that_fail_at_their_commit() -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        server.fail_commits(grpc.StatusCode.FAILED_PRECONDITION, "a canary parts")
        server.fail_commits(grpc.StatusCode.UNAVAILABLE, "lost", applied=True)
        with pytest.raises(FailedPrecondition, match="a canary parts"):
            await client.update_weights(1, DATA, specs=SPECS)
        assert (await client.get_policy()).weight_version == 0
        with pytest.raises(Unavailable, match="lost"):
            await client.update_weights(1, DATA, specs=SPECS)
        policy = await client.get_policy()
    assert policy.weight_version == 1
    assert [update.version for update in server.updates] == [1]


async def test_tensors_are_taken_in_one_thread_beside_the_event_loop() -> None:
    threads: list[threading.Thread] = []
    alive: list[bool] = []
    gate = threading.Event()

    def tensors() -> Iterator[Any]:
        for data in DATA:
            threads.append(threading.current_thread())
            alive.append(gate.wait(20))
            yield data

    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        update = asyncio.create_task(client.update_weights(1, tensors(), specs=SPECS))
        async with asyncio.timeout(20):
            while not threads:
                await asyncio.sleep(0.005)
        await client.get_policy()  # the loop is free while a tensor is being made
        gate.set()
        assert (await update).version == 1
    assert len({thread.ident for thread in threads}) == 1
    assert threads[0] is not threading.current_thread()
    assert alive == [True, True]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.zeros((4, 3), np.float32)[::2], "no contiguous bytes"),
        (np.zeros((2, 3), ">f4"), "big-endian"),
        ("text", "no contiguous bytes"),
        (None, "no contiguous bytes"),
    ],
)
async def test_bytes_that_would_be_misread_are_refused(tensor: Any, words: str) -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        with pytest.raises(InvalidArgument, match=f"source: a (is )?{words}"):
            await client.update_weights(1, [tensor, DATA[1]], specs=SPECS)
        assert server.updates == []


async def test_tensors_without_elements_and_numbers_travel() -> None:
    specs = [TensorSpec("none", "float32", (0, 4)), TensorSpec("number", "float32", ())]
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        data = [np.zeros((0, 4), np.float32), np.array(2.5, np.float32)]
        await client.update_weights(1, data, specs=specs)
    assert server.updates[0].tensors == {"none": b"", "number": data[1].tobytes()}


async def test_an_update_that_is_cancelled_changes_nothing() -> None:
    gate = threading.Event()

    def tensors() -> Iterator[Any]:
        yield DATA[0]
        gate.wait(20)
        yield DATA[1]

    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        update = asyncio.create_task(client.update_weights(1, tensors(), specs=SPECS))
        async with asyncio.timeout(20):
            while not server.calls:
                await asyncio.sleep(0.005)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        gate.set()
        async with asyncio.timeout(10):  # until the sampler has seen that its caller left
            while not server.updates:
                with contextlib.suppress(Aborted):  # the first is still seen as under way
                    await client.update_weights(2, DATA, specs=SPECS)
    assert [update.version for update in server.updates] == [2]


# The fake


async def test_several_versions_in_one_completion() -> None:
    async with FakePolicyServer(lambda *_: ([5] * 9, [-1.0] * 9), delay=(0.3, 0.3)) as server:
        async with AsyncPolicyClient(server.target) as client:
            task = asyncio.create_task(collect(client, GenerateItem(PROMPT), max_tokens=9))
            while not (await client.get_policy()).running:
                await asyncio.sleep(0.005)
            for version in (1, 2):
                await client.update_weights(version, DATA, specs=SPECS)
            (found,) = await task
    assert found.versions.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


async def test_health_can_be_told() -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        assert await client.health("guerdon.v1.PolicyService")
        await server.set_serving(False)
        assert not await client.health()
