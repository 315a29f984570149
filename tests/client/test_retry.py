"""Retries, deadlines, cancellation: on a fake clock, over real sockets."""

# ruff: noqa: SIM117 - server and client are nested as they live
# ruff: noqa: ASYNC110 - the fake has no event to wait for
from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from guerdon.client import (
    AsyncAdminClient,
    AsyncRewardClient,
    DeadlineExceeded,
    GuerdonError,
    Item,
    Limits,
    Overloaded,
    Retry,
    Unavailable,
)
from guerdon.client.testing import FakeClock, FakeRewardServer

ITEMS = [Item("p", ["abc"])]
Code = grpc.StatusCode


def client_of(server: Any, clock: FakeClock, **options: Any) -> AsyncRewardClient:
    return AsyncRewardClient(server.target, clock=clock.clock, **options)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
async def test_waits_have_full_jitter_and_grow(chance: float) -> None:
    clock = FakeClock(chance)
    retry = Retry(initial=0.5, multiplier=2.0, maximum=3.0, attempts=6)
    async with FakeRewardServer() as server, client_of(server, clock, retry=retry) as client:
        server.fail(Code.UNAVAILABLE, times=5)
        assert (await client.score("fake", ITEMS)).scores == [[3.0]]
    assert clock.sleeps == [chance * ceiling for ceiling in (0.5, 1.0, 2.0, 3.0, 3.0)]


@pytest.mark.parametrize("chance", [0.0, 1.0])
async def test_the_servers_own_time_is_waited_and_jitter_comes_on_top(chance: float) -> None:
    clock = FakeClock(chance)
    retry = Retry(initial=0.5)
    async with FakeRewardServer() as server, client_of(server, clock, retry=retry) as client:
        server.fail(Code.RESOURCE_EXHAUSTED, retry_after=2.0)
        await client.score("fake", ITEMS)
    assert clock.sleeps == [2.0 + chance * 0.5]


@pytest.mark.parametrize(
    "code",
    [
        Code.RESOURCE_EXHAUSTED,  # without RetryInfo: the message is too large
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.FAILED_PRECONDITION,
        Code.INTERNAL,
        Code.DEADLINE_EXCEEDED,
        Code.UNKNOWN,
        Code.ABORTED,
        Code.DATA_LOSS,
        Code.UNAUTHENTICATED,
    ],
)
async def test_other_errors_are_told_at_once(code: grpc.StatusCode) -> None:
    async with FakeRewardServer() as server, client_of(server, FakeClock()) as client:
        server.fail(code, "because")
        with pytest.raises(GuerdonError, match="because") as caught:
            await client.score("fake", ITEMS)
        assert caught.value.code is code
        assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
        assert len(server.calls) == 1


async def test_attempts_are_counted() -> None:
    clock = FakeClock()
    retry = Retry(attempts=3, overload_attempts=5)
    async with FakeRewardServer() as server, client_of(server, clock, retry=retry) as client:
        server.fail(Code.UNAVAILABLE, times=3)
        with pytest.raises(Unavailable):
            await client.score("fake", ITEMS)
        assert len(server.calls) == 3
        server.fail(Code.RESOURCE_EXHAUSTED, retry_after=0.1, times=5)
        with pytest.raises(Overloaded) as caught:
            await client.score("fake", ITEMS)
        assert caught.value.retry_after == 0.1
        assert len(server.calls) == 8


async def test_administration_is_not_repeated() -> None:
    async with FakeRewardServer() as server:
        async with AsyncAdminClient(server.target, clock=FakeClock().clock) as admin:
            server.fail(Code.UNAVAILABLE)
            with pytest.raises(Unavailable):
                await admin.promote_model("fake", "rev-1")
            assert len(server.calls) == 1
            server.fail(Code.UNAVAILABLE)
            await admin.set_alias("other", "fake")
            assert len(server.calls) == 3


async def test_what_is_left_of_the_time_is_the_deadline_of_each_try() -> None:
    clock = FakeClock(1.0)
    retry = Retry(initial=10.0, multiplier=1.0, maximum=10.0)
    async with FakeRewardServer() as server, client_of(server, clock, retry=retry) as client:
        server.fail(Code.UNAVAILABLE, times=3)
        await client.score("fake", ITEMS, timeout=35.0)
        allowed = [call.time_remaining for call in server.calls]
    for seconds, expected in zip(allowed, (35.0, 25.0, 15.0, 5.0), strict=True):
        assert seconds is not None
        assert expected - 4.0 < seconds <= expected + 0.5  # gRPC rounds what it sends up


async def test_no_wait_goes_past_the_deadline() -> None:
    clock = FakeClock()
    async with FakeRewardServer() as server, client_of(server, clock) as client:
        server.fail(Code.RESOURCE_EXHAUSTED, retry_after=100.0, times=9)
        with pytest.raises(Overloaded) as caught:
            await client.score("fake", ITEMS, timeout=50.0)
        assert caught.value.retry_after == 100.0
    assert clock.sleeps == []


async def test_one_timeout_for_all_parts_of_a_call() -> None:
    async with FakeRewardServer() as server:
        server.latency = 0.2
        limits = Limits(max_responses=1, concurrency=1)
        async with AsyncRewardClient(server.target, limits=limits) as client:
            with pytest.raises(DeadlineExceeded, match="no answer within") as caught:
                await client.score("fake", ITEMS * 20, timeout=0.7)
        assert isinstance(caught.value, TimeoutError)
        left = [call.time_remaining or 0.0 for call in server.calls]
        assert left == sorted(left, reverse=True)
        assert len(left) < 6


async def test_no_timeout_means_no_deadline() -> None:
    async with FakeRewardServer() as server, AsyncRewardClient(server.target) as client:
        await client.score("fake", ITEMS, timeout=None)
        await client.score("fake", ITEMS)
        first, second = (call.time_remaining for call in server.calls)
        assert first is None or first > 1e6
        assert second is not None
        assert 50 < second <= 60.5


async def test_cancelling_reaches_the_server() -> None:
    async with FakeRewardServer() as server:
        server.latency = 60.0
        async with AsyncRewardClient(server.target, limits=Limits(max_responses=1)) as client:
            task = asyncio.create_task(client.score("fake", ITEMS * 3))
            while len(server.calls) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.cancelled < 3:
                await asyncio.sleep(0.01)


async def test_a_failed_part_cancels_the_others() -> None:
    def score(prompt: Any, response: str) -> float:
        raise KeyError(response)

    async with FakeRewardServer(score) as server:
        async with AsyncRewardClient(server.target, limits=Limits(max_responses=1)) as client:
            with pytest.raises(GuerdonError, match="no score"):
                await client.score("fake", ITEMS * 50)
        assert len(server.calls) < 50


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"initial": 0.0}, {"maximum": 0.01}, {"multiplier": 0.5}]
)
def test_policies_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Retry(**options)
