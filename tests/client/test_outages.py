"""Servers that restart, are away, stand still or never answer: what a call pays for it."""

# ruff: noqa: SIM117 - server and client are nested as they live
from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from guerdon.client import (
    AsyncRewardClient,
    Cancelled,
    DeadlineExceeded,
    GuerdonError,
    InvalidArgument,
    Item,
    Limits,
    Overloaded,
    Retry,
    Unavailable,
    _channel,
)
from guerdon.client.testing import FakeClock, FakeRewardServer

ITEMS = [Item("p", ["abc"])]
Code = grpc.StatusCode

PROCESS = """
import asyncio
from guerdon.client.testing import FakeRewardServer

async def main():
    async with FakeRewardServer() as server:
        print(server.port, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A fake server in a process of its own, which can be stopped, and its address."""
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            yield running, f"127.0.0.1:{int(running.stdout.readline())}"
        finally:
            running.kill()


async def until_all_answered(client: AsyncRewardClient, *servers: FakeRewardServer) -> None:
    """Until there is a connection to each; what it asked is forgotten."""
    while not all(server.calls for server in servers):
        await client.score("fake", ITEMS, timeout=60)
    for server in servers:
        server.calls.clear()


async def test_restarts_under_load_cost_no_call() -> None:
    """A server that stops ends its calls with CANCELLED, which the callers did not ask for."""
    seen: Counter[str] = Counter()
    async with FakeRewardServer() as server:
        server.latency = 0.02
        async with AsyncRewardClient(server.target) as client:

            async def caller() -> None:
                for _ in range(5):
                    seen[str((await client.score("fake", ITEMS)).scores)] += 1

            callers = [asyncio.create_task(caller()) for _ in range(50)]
            for answered in (20, 120):
                while sum(seen.values()) < answered:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                await server.restart()
            await asyncio.gather(*callers)
    assert seen == {"[[3.0]]": 250}


async def test_a_cancellation_by_the_server_is_retried_where_that_is_safe() -> None:
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=FakeClock().clock) as client:
            server.fail(Code.CANCELLED, times=2)
            assert (await client.score("fake", ITEMS)).scores == [[3.0]]
            server.fail(Code.CANCELLED, times=2)
            found = [result async for result in client.score_stream("fake", ITEMS)]
            assert [result.values for result in found] == [[3.0]]
        once = Retry(attempts=1)
        async with AsyncRewardClient(server.target, retry=once) as client:
            server.fail(Code.CANCELLED, "stopping")
            with pytest.raises(Unavailable, match="the server ended the call: stopping"):
                await client.score("fake", ITEMS)


async def test_a_call_waits_as_long_as_its_deadline() -> None:
    """51 seconds of outage within the 60 that a call has."""
    clock = FakeClock(chance=1.0)
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.fail(Code.UNAVAILABLE, times=15)
            assert (await client.score("fake", ITEMS)).scores == [[3.0]]
            assert 45 < clock.time < 60
            clock.time = 0.0
            server.fail(Code.UNAVAILABLE, "starting", times=1000)
            # The last try has little time: a slow machine may not get to answer it.
            with pytest.raises((Unavailable, DeadlineExceeded), match="starting"):
                await client.score("fake", ITEMS, timeout=300)
            assert 295 < clock.time <= 300


async def test_a_stream_waits_as_long_as_an_item_may_take() -> None:
    clock = FakeClock(chance=1.0)
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.break_streams(after=0, times=15)
            found = [result async for result in client.score_stream("fake", ITEMS)]
            assert [result.values for result in found] == [[3.0]]
            server.break_streams(after=0, times=1000)
            begun = clock.time
            with pytest.raises((Unavailable, DeadlineExceeded), match="broken by the test"):
                async for _ in client.score_stream("fake", ITEMS):
                    pass
            assert 55 < clock.time - begun <= 60


async def test_an_expired_deadline_tells_what_went_wrong_before() -> None:
    clock = FakeClock()
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.fail(Code.UNAVAILABLE, "the server is starting")
            server.fail(Code.DEADLINE_EXCEEDED)
            with pytest.raises(DeadlineExceeded, match=r"60 seconds; .* the server is starting"):
                await client.score("fake", ITEMS)


async def test_a_long_wait_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(chance=1.0)
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.fail(Code.UNAVAILABLE, "the server is starting", times=3)
            await client.score("fake", ITEMS)
            assert not caplog.messages, "a short one is no news"
            server.fail(Code.UNAVAILABLE, "the server is starting", times=7)
            await client.score("fake", ITEMS)
    assert caplog.messages == [
        f"{server.target}: the server is starting; trying again for up to 58 s"
    ]


async def test_closing_during_a_wait_ends_the_call() -> None:
    async with FakeRewardServer() as server:
        client = AsyncRewardClient(server.target, retry=Retry(initial=0.5, multiplier=1))
        server.fail(Code.UNAVAILABLE, times=1000)
        call = asyncio.create_task(client.score("fake", ITEMS))
        while not server.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            await call


@pytest.mark.parametrize("named", [-5.0, 0.0, -1e9])
async def test_a_time_to_come_back_in_the_past_does_not_defeat_the_backoff(named: float) -> None:
    clock = FakeClock(chance=1.0)
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.fail(Code.RESOURCE_EXHAUSTED, retry_after=named, times=4)
            await client.score("fake", ITEMS)
    assert clock.sleeps == pytest.approx([0.1, 0.2, 0.4, 0.8])


async def test_an_absurd_time_to_come_back_is_not_waited() -> None:
    clock = FakeClock(chance=0.0)
    async with FakeRewardServer() as server:
        async with AsyncRewardClient(server.target, clock=clock.clock) as client:
            server.fail(Code.RESOURCE_EXHAUSTED, retry_after=3e9, times=2)
            await client.score("fake", ITEMS, timeout=None)
            assert clock.sleeps == [600.0, 600.0]
            server.fail(Code.RESOURCE_EXHAUSTED, retry_after=3e9)
            with pytest.raises(Overloaded) as caught:
                await client.score("fake", ITEMS, timeout=50)
            assert caught.value.retry_after == 600.0


async def test_a_server_that_stands_still_costs_little(
    monkeypatch: pytest.MonkeyPatch, process: tuple[subprocess.Popen[bytes], str]
) -> None:
    """SIGSTOP: its kernel goes on to acknowledge, and takes new connections."""
    monkeypatch.setattr(_channel, "_PING_MS", 2_000)
    frozen, address = process
    async with FakeRewardServer() as one, FakeRewardServer() as two:
        async with AsyncRewardClient([address, one.target, two.target]) as client:
            before = 0
            while before - len(one.calls) - len(two.calls) < 3:
                await client.score("fake", ITEMS)  # until it has had its share
                before += 1
            frozen.send_signal(signal.SIGSTOP)
            calls = [client.score("fake", ITEMS, timeout=25) for _ in range(30)]
            assert [r.scores for r in await asyncio.gather(*calls)] == [[[3.0]]] * 30
            for _ in range(12):  # from now on it is passed over
                assert (await client.score("fake", ITEMS, timeout=25)).scores == [[3.0]]


async def test_a_server_that_never_answers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes calls and pings, and says that it serves."""
    monkeypatch.setitem(_channel._LEFT_OUT, "interval", "1s")
    once = Retry(attempts=1)
    async with FakeRewardServer() as one, FakeRewardServer() as two, FakeRewardServer() as hung:
        targets = [one.target, two.target, hung.target]
        async with AsyncRewardClient(targets, retry=once, timeout=1.0) as client:
            await until_all_answered(client, one, two, hung)
            hung.latency = 600
            for _ in range(30):
                calls = [client.score("fake", ITEMS) for _ in range(48)]
                found = await asyncio.gather(*calls, return_exceptions=True)
                if not any(isinstance(result, GuerdonError) for result in found):
                    break
            else:
                pytest.fail("it had its share of the calls all the time")
        assert len(hung.calls) >= 5, "it is not left out for nothing"


async def test_one_server_alone_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are all of several: a caller's own mistakes count as failures, too."""
    monkeypatch.setitem(_channel._LEFT_OUT, "interval", "0.1s")
    async with FakeRewardServer() as one, FakeRewardServer() as two:
        for targets in ([one.target], [one.target, two.target]):
            async with AsyncRewardClient(targets, retry=Retry(attempts=1)) as client:
                for _ in range(10):
                    calls = [client.score("nobody", ITEMS) for _ in range(20)]
                    found = await asyncio.gather(*calls, return_exceptions=True)
                    assert {getattr(error, "code", None) for error in found} == {Code.NOT_FOUND}
                    await asyncio.sleep(0.03)
                assert (await client.score("fake", ITEMS)).scores == [[3.0]]


async def test_a_late_request_is_sent_to_the_next_server() -> None:
    async with FakeRewardServer() as quick, FakeRewardServer() as hung:
        retry = Retry(hedge_after=0.05)
        async with AsyncRewardClient([quick.target, hung.target], retry=retry) as client:
            await until_all_answered(client, quick, hung)
            hung.latency = 600
            for _ in range(8):
                assert (await client.score("fake", ITEMS)).scores == [[3.0]]
            assert await client.rank("fake", "p", ["abc", "a"])
        assert hung.calls, "it had its turns"
        while hung.cancelled < len(hung.calls):  # noqa: ASYNC110 - what is late is not wanted
            await asyncio.sleep(0.01)


async def test_a_second_request_does_not_hide_an_error() -> None:
    async with FakeRewardServer() as server:
        server.latency = 0.2
        retry = Retry(hedge_after=0.01)
        async with AsyncRewardClient(server.target, retry=retry) as client:
            server.fail(Code.INVALID_ARGUMENT, "because")
            with pytest.raises(InvalidArgument, match="because"):
                await client.score("fake", ITEMS)
            server.fail(Code.UNAVAILABLE)
            assert (await client.score("fake", ITEMS)).scores == [[3.0]]
            call = asyncio.create_task(client.score("fake", ITEMS))
            seen = len(server.calls)
            while len(server.calls) < seen + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


async def test_a_reply_that_is_too_large_is_refused_and_not_asked_for_again() -> None:
    async with FakeRewardServer() as server:
        limits: dict[str, Any] = {"limits": Limits(max_reply_bytes=100)}
        async with AsyncRewardClient(server.target, **limits) as client:
            assert (await client.score("fake", ITEMS)).scores == [[3.0]]
            with pytest.raises(Overloaded, match=r"has \d+ bytes, .*max_reply_bytes.* is 100$"):
                await client.score("fake", [Item("p", ["abc"], id="i" * 100)])
        assert len(server.calls) == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_names_that_cannot_be_looked_up_yet_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """As in a cluster whose services are being made."""
    lookups = 0
    really = _channel._addresses

    async def addresses(endpoint: str) -> Any:
        nonlocal lookups
        lookups += 1
        if lookups <= 8:
            raise OSError("Name or service not known")
        return await really(endpoint)

    monkeypatch.setattr(_channel, "_addresses", addresses)
    async with FakeRewardServer() as one, FakeRewardServer() as two:
        targets = [one.target, two.target]
        async with AsyncRewardClient(targets, clock=FakeClock().clock) as client:
            if streamed:
                assert [r.values async for r in client.score_stream("fake", ITEMS)] == [[3.0]]
            else:
                assert (await client.score("fake", ITEMS)).scores == [[3.0]]
    assert lookups == 10
