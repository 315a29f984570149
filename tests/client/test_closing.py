"""A client that is closed while it is used, forked processes, and connections that break."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import pytest

from guerdon.client import AsyncRewardClient, Cancelled, Item, RewardClient, Unavailable
from guerdon.client.errors import from_rpc_error
from guerdon.client.testing import FakeRewardServer

ITEM = Item("p", ["a"])


@pytest.fixture
def stuck() -> Iterator[FakeRewardServer]:
    """A server that answers too late for any test."""
    with FakeRewardServer({"a": 1.0}) as server:
        server.latency = 600
        yield server


async def until_called(server: FakeRewardServer) -> None:
    while not server.calls:  # noqa: ASYNC110 - the server lives in another thread
        await asyncio.sleep(0.005)


async def score(client: AsyncRewardClient) -> None:
    await client.score("fake", [ITEM])


async def stream(client: AsyncRewardClient) -> None:
    async for _ in client.score_stream("fake", [ITEM]):
        pass


@pytest.mark.parametrize("use", [score, stream])
async def test_closing_ends_calls_under_way_with_an_error_of_the_client(
    stuck: FakeRewardServer, use: Callable[[AsyncRewardClient], Coroutine[Any, Any, None]]
) -> None:
    client = AsyncRewardClient(stuck.target)
    using = asyncio.ensure_future(use(client))
    await until_called(stuck)
    await client.close()
    with pytest.raises(Cancelled, match="the client was closed"):
        await asyncio.wait_for(asyncio.shield(using), 10)
    with pytest.raises(RuntimeError, match="closed"):
        await use(client)


async def test_cancelling_a_task_is_still_a_cancellation(stuck: FakeRewardServer) -> None:
    async with AsyncRewardClient(stuck.target) as client:
        using = asyncio.ensure_future(client.score("fake", [ITEM]))
        await until_called(stuck)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using


@pytest.mark.parametrize("streamed", [False, True])
def test_closing_wakes_threads_that_wait(stuck: FakeRewardServer, streamed: bool) -> None:
    client = RewardClient(stuck.target)
    caught: list[BaseException] = []

    def use() -> None:
        try:
            if streamed:
                list(client.score_stream("fake", [ITEM]))
            else:
                client.score("fake", [ITEM])
        except Cancelled as error:
            caught.append(error)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    asyncio.run(until_called(stuck))
    client.close()
    thread.join(10)
    assert [str(error) for error in caught] == [
        "the client was closed while the call was under way"
    ]


FORK = """
import os, sys
from guerdon.client import Item, RewardClient

def score(client):
    return client.score("fake", [Item("p", ["a"])]).scores

early = os.fork()
if early == 0:
    os._exit(0 if score(RewardClient(sys.argv[1])) == [[1.0]] else 1)
assert os.waitpid(early, 0)[1] == 0, "forked before the first use, a child works"
with RewardClient(sys.argv[1]) as client:
    assert score(client) == [[1.0]]
    late = os.fork()
    if late == 0:
        for each in (client, RewardClient(sys.argv[1], timeout=1)):
            try:
                score(each)
            except RuntimeError as error:
                assert "forked" in str(error)
                each.close()
            else:
                os._exit(1)
        os._exit(0)
    assert os.waitpid(late, 0)[1] == 0
    assert score(client) == [[1.0]], "the parent goes on"
"""


def test_a_forked_process_is_told_instead_of_waiting_for_ever() -> None:
    with FakeRewardServer({"a": 1.0}) as server:
        command = [sys.executable, "-c", FORK, server.target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def test_a_write_that_broke_is_no_failure_of_the_server() -> None:
    internal = grpc.StatusCode.INTERNAL
    assert isinstance(from_rpc_error(rpc_error(internal, "Internal error from Core")), Unavailable)
    assert from_rpc_error(rpc_error(internal, "internal error; id 12")).code is internal


async def test_nobody_there_is_said_plainly() -> None:
    async with AsyncRewardClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"^cannot connect to 127\.0\.0\.1:1: "):
            await client.health()
