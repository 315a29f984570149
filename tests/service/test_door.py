"""Calls are refused from their headers alone; bursts are served or shed, never cancelled."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.sampler_service import start_sampler
from tests.support.statuses import details

from guerdon.v1 import admin_pb2

from .conftest import Harness, start_server, until
from .messages import item, retry_seconds, score_request

HEALTH = health_pb2.HealthCheckResponse
SCORE = "/guerdon.v1.RewardService/Score"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
TOKEN = (("authorization", "Bearer sesame"),)


def token_file(folder: Path) -> Path:
    path = folder / "token"
    path.write_text("sesame")
    return path


async def silent_call(channel: grpc.aio.Channel, method: str, metadata: Any = ()) -> Any:
    """A call whose headers are sent and whose message never comes."""
    call: Any = channel.stream_unary(method)(metadata=metadata, timeout=20)
    await call.wait_for_connection()
    return await call


@pytest.mark.parametrize("method", [SCORE, SCORE + "Stream", REFLECTION])
async def test_a_stranger_is_refused_before_a_message_comes(tmp_path: Path, method: str) -> None:
    async with start_server(token_file=token_file(tmp_path)) as served:
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await silent_call(served.channel, method, metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        name = method.rpartition("/")[2]
        line = f'guerdon_refused_calls_total{{code="UNAUTHENTICATED",method="{name}"}}'
        assert await served.metric(line) == 2
        await served.rewards.Score(score_request(), metadata=TOKEN, timeout=20)


async def test_a_stranger_is_refused_by_the_sampler_before_a_message_comes(
    tmp_path: Path,
) -> None:
    async with start_sampler(token_file=token_file(tmp_path)) as served:
        for method in ("Generate", "UpdateWeights", "GetPolicy"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await silent_call(served.channel, f"/guerdon.v1.PolicyService/{method}")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await served.metric('refused_calls_total{code="UNAUTHENTICATED",method="Generate"}')


async def test_probes_need_no_token_and_nothing_is_read_of_them(tmp_path: Path) -> None:
    async with start_server(token_file=token_file(tmp_path)) as served:
        reply = await silent_call(served.channel, "/grpc.health.v1.Health/Check")
        assert HEALTH.FromString(reply).status == HEALTH.SERVING
        stub: Any = health_pb2_grpc.HealthStub(served.channel)
        asked = health_pb2.HealthCheckRequest
        assert (await stub.Check(asked(service=""), timeout=20)).status == HEALTH.SERVING
        # With a token the message is read, and so the service is looked up.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(asked(service="nobody"), metadata=TOKEN, timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        strangers = stub.Watch(asked(), timeout=60)
        assert (await strangers.read()).status == HEALTH.SERVING
        served.server.lifecycle.start_draining()
        assert (await strangers.read()).status == HEALTH.NOT_SERVING


async def test_who_stops_to_watch_takes_nobody_along(served: Harness) -> None:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    leaving, staying = (stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(2))
    for watch in (leaving, staying):
        assert (await watch.read()).status == HEALTH.SERVING
    leaving.cancel()
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
    served.behaviour.gate.clear()
    busy = asyncio.ensure_future(served.rewards.Score(score_request(), timeout=60))
    await until(lambda: served.behaviour.batches > 0)
    served.server.lifecycle.start_draining()
    assert (await staying.read()).status == HEALTH.NOT_SERVING
    served.behaviour.gate.set()
    await busy


async def test_calls_beyond_the_limit_are_shed_with_a_time_to_come_back() -> None:
    async with start_server(max_calls=2) as served:
        served.behaviour.gate.clear()
        held = [
            asyncio.ensure_future(served.rewards.Score(score_request(item(f"q{i}")), timeout=60))
            for i in range(2)
        ]
        await until(lambda: served.server.lifecycle.accepted == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.rewards.Score(score_request(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0.1 < retry_seconds(details(caught.value)) < 5
        line = 'guerdon_refused_calls_total{code="RESOURCE_EXHAUSTED",method="Score"}'
        assert await served.metric(line) == 1
        # Whoever administers the server gets through, and so do probes.
        await served.admin.SetAlias(admin_pb2.SetAliasRequest(alias="a", name="m"), timeout=20)
        stub: Any = health_pb2_grpc.HealthStub(served.channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        served.behaviour.gate.set()
        await asyncio.gather(*held)
        await served.still_serves()


@pytest.mark.slow
async def test_a_burst_is_served_or_shed_never_cancelled(served: Harness) -> None:
    """gRPC by itself cancels calls when 1,000 wait to be looked at."""
    calls = [served.rewards.Score(score_request(), timeout=250) for _ in range(1800)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    codes = Counter(
        reply.code().name if isinstance(reply, grpc.aio.AioRpcError) else type(reply).__name__
        for reply in replies
    )
    said = {r.details() for r in replies if isinstance(r, grpc.aio.AioRpcError)}
    assert codes == {"ScoreResponse": 1800}, said
    await served.still_serves()
