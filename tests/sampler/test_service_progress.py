"""How far completions have come, told while they are drawn, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.support.formula_engine import END, HELD_TOKENS, length_of
from tests.support.in_process import until
from tests.support.sampler_service import item, request, start_sampler

from guerdon.serving.wire.handlers import send
from guerdon.v1 import policy_pb2, policy_pb2_grpc

ITEMS = [item(7, 8, n=3, seed=9), item(1, 2, 3, n=2)]
EVERY = {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}


def told(reply: policy_pb2.GenerateResponse) -> dict[tuple[int, int], int]:
    return {(each.item, each.sample): each.tokens for each in reply.progress}


async def test_counts_grow_from_0_and_end_with_the_completion() -> None:
    async with start_sampler() as served:
        plain = await served.generate(*ITEMS)
        first, *replies = await served.generate(*ITEMS, report_progress=True)
    assert told(first) == dict.fromkeys(EVERY, 0)
    latest, ended = told(first), {}
    for reply in replies:
        key = (reply.item, reply.sample)
        if reply.token_ids:
            assert not reply.progress
            assert latest[key] <= len(reply.token_ids)
            ended[key] = reply
        for grown, tokens in told(reply).items():
            assert grown not in ended
            assert tokens > latest[grown]
        latest |= told(reply)
    assert ended == {(reply.item, reply.sample): reply for reply in plain}
    assert any(tokens > 0 for tokens in latest.values())


async def test_only_who_asks_is_told() -> None:
    async with start_sampler() as served:
        assert not any(reply.progress for reply in await served.generate(*ITEMS))
        call = served.policy.Generate(request(min_version=1, report_progress=True))
        with pytest.raises(grpc.aio.AioRpcError, match="older than 1"):
            await call.read()  # it was not accepted, so nothing is told


async def test_what_is_told_is_what_the_engine_drew() -> None:
    prompt, n = (4,), 5
    lengths = [length_of(prompt, sample) for sample in range(n)]
    async with start_sampler() as served:
        served.engine.behaviour.held_seed = 7
        call = served.policy.Generate(request(item(*prompt, n=n, seed=7), report_progress=True))
        latest: dict[tuple[int, int], int] = {}
        while sorted(latest.values()) != sorted(min(each, HELD_TOKENS) for each in lengths):
            reply = await call.read()
            latest |= told(reply) or {(reply.item, reply.sample): len(reply.token_ids)}
        assert sum(latest.values()) == served.engine.behaviour.tokens
        call.cancel()
        await until(lambda: served.engine.running == 0)
        assert sum(latest.values()) == served.engine.behaviour.tokens


async def test_a_slow_reader_gets_the_latest_counts_and_no_queue_of_old_ones() -> None:
    n, items, length = 250, 2, 100
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
    async with (
        start_sampler(max_in_flight=n * items) as served,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.ports.port}", options=options) as channel,
    ):
        stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        asked = [item(i + 1, n=n) for i in range(items)]
        limits = {"max_tokens": length, "ignore_eos": True, "report_progress": True}
        call = stub.Generate(request(*asked, **limits))
        await until(lambda: served.engine.behaviour.drawn == n * items)
        replies = [reply async for reply in call]
    messages = [reply for reply in replies if reply.progress]
    assert len(replies) - len(messages) == n * items
    assert len(messages) < length / 2  # those that the connection had room for, and one more
    assert all(reply.token_ids[-1] != END for reply in replies if reply.token_ids)


async def test_a_write_that_is_cancelled_ends_first() -> None:
    """While gRPC has a write it takes no status, and a call that failed would never end."""

    class Context:
        room, written = asyncio.Event(), 0

        async def write(self, _message: Any) -> None:
            await self.room.wait()
            self.written += 1

    context: Any = Context()
    sending = asyncio.ensure_future(send(context, policy_pb2.GenerateResponse()))
    await asyncio.sleep(0)
    sending.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not sending.done()
    context.room.set()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert context.written == 1
