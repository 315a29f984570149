"""Streams: windows, faults, broken connections."""

# ruff: noqa: SIM117 - server and client are nested as they live
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from guerdon.client import (
    AsyncRewardClient,
    DeadlineExceeded,
    GuerdonError,
    InvalidArgument,
    Item,
    Limits,
    Overloaded,
    Retry,
    StreamResult,
    Unavailable,
)
from guerdon.client.testing import FakeRewardServer

QUICK = Retry(initial=0.01, maximum=0.05)
Code = grpc.StatusCode


def numbered(count: int) -> Iterator[Item]:
    return (Item("p", [str(i), "x"], id=f"id-{i}") for i in range(count))


def value(prompt: Any, response: str) -> float:
    return -1.0 if response == "x" else float(response)


async def collect(client: AsyncRewardClient, items: Any, **options: Any) -> list[StreamResult]:
    return [result async for result in client.score_stream("fake", items, **options)]


def complete(results: list[StreamResult], count: int) -> bool:
    """Each item once, with its own scores."""
    ordered = sorted(results, key=lambda r: r.index)
    return [(r.index, r.id, r.values) for r in ordered] == [
        (i, f"id-{i}", [float(i), -1.0]) for i in range(count)
    ]


async def test_every_item_is_answered_once() -> None:
    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        assert complete(await collect(client, numbered(500)), 500)
        assert await collect(client, []) == []
        assert len(server.calls) == 500


async def test_broken_streams_lose_nothing_and_repeat_nothing() -> None:
    async with FakeRewardServer(value) as server:
        async with AsyncRewardClient(server.target, retry=QUICK) as client:
            server.break_streams(after=10, times=5)
            server.break_streams(after=0, times=2)
            assert complete(await collect(client, numbered(200), in_flight=16), 200)
            assert len(server.calls) > 200, "what was unanswered was sent again"


async def test_a_restarted_server_loses_nothing() -> None:
    async with FakeRewardServer(value) as server:
        server.latency = 0.001
        patient = Retry(attempts=30, initial=0.1, maximum=0.5)
        async with AsyncRewardClient(server.target, retry=patient, timeout=30.0) as client:
            results = []
            async for result in client.score_stream("fake", numbered(300), in_flight=8):
                results.append(result)
                if len(results) in (50, 150):
                    await server.restart()
            assert complete(results, 300)


async def test_one_bad_item_fails_alone() -> None:
    items = [
        Item("p", ["1"]),
        Item("p", ["not a number"]),
        "no item",
        Item("p", ["\ud800"]),
        Item("p", ["4"]),
    ]
    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        results = sorted(await collect(client, items), key=lambda r: r.index)
    assert [type(r.error).__name__ for r in results] == [
        "NoneType",
        "Internal",
        "InvalidArgument",
        "InvalidArgument",
        "NoneType",
    ]
    assert results[4].values == [4.0]
    with pytest.raises(InvalidArgument):
        results[3].values  # noqa: B018


async def test_an_item_that_would_end_the_stream_is_not_sent() -> None:
    items = [Item("p", ["1"]), Item("p", ["2" * 5000]), Item("p", ["3"])]
    limits = Limits(max_message_bytes=1000)
    async with FakeRewardServer(value) as server:
        async with AsyncRewardClient(server.target, limits=limits) as client:
            results = sorted(await collect(client, items), key=lambda r: r.index)
    assert [r.error is None for r in results] == [True, False, True]
    assert isinstance(results[1].error, InvalidArgument)


async def test_shed_items_come_back_later() -> None:
    async with FakeRewardServer(value) as server:
        async with AsyncRewardClient(server.target, retry=QUICK) as client:
            server.fail(Code.RESOURCE_EXHAUSTED, retry_after=0.02, times=30)
            assert complete(await collect(client, numbered(50)), 50)
            assert len(server.calls) == 80
            server.fail(Code.RESOURCE_EXHAUSTED, times=1)
            (result,) = await collect(client, numbered(1))
            assert isinstance(result.error, Overloaded), "too large: it does not come back"


async def test_the_timeout_is_for_each_item_and_travels() -> None:
    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        await collect(client, numbered(3), timeout=7.0)
        assert all(6.0 < (c.time_remaining or 0) <= 7.0 for c in server.calls)
        server.latency = 30.0
        results = await collect(client, numbered(3), timeout=0.1)
        assert [type(r.error) for r in results] == [DeadlineExceeded] * 3


async def test_no_more_than_the_window_is_taken() -> None:
    taken = 0

    async def source() -> AsyncIterator[Item]:
        nonlocal taken
        for item in numbered(100):
            taken += 1
            yield item

    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        handed = 0
        async with aclosing(client.score_stream("fake", source(), in_flight=5)) as results:
            async for _ in results:
                handed += 1
                await asyncio.sleep(0.002)
                assert taken <= handed + 5
        assert handed == 100


async def test_leaving_early_ends_the_work() -> None:
    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        async with aclosing(client.score_stream("fake", numbered(10_000))) as results:
            async for _ in results:
                break
        assert len(server.calls) < 500
        async with asyncio.timeout(10):  # the server learns a moment later that we left
            while any("Reward" in str(task.get_coro()) for task in asyncio.all_tasks()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_nobody_there_is_told_and_the_sources_own_error_is_kept() -> None:
    async with AsyncRewardClient("127.0.0.1:1", retry=Retry(attempts=2, initial=0.01)) as client:
        with pytest.raises(Unavailable):
            await collect(client, numbered(3))

    def broken() -> Iterator[Item]:
        yield Item("p", ["1"])
        raise LookupError("the file ends here")

    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        with pytest.raises(LookupError, match="the file ends here"):
            await collect(client, broken())
        with pytest.raises(InvalidArgument, match="in_flight"):
            await collect(client, [], in_flight=0)


async def test_a_stream_refused_for_good_is_told() -> None:
    async with FakeRewardServer(value) as server, AsyncRewardClient(server.target) as client:
        (result,) = [r async for r in client.score_stream("unknown", numbered(1))]
        assert isinstance(result.error, GuerdonError)
        assert result.error.code is Code.NOT_FOUND
