"""Streams of text-embeddings-inference's API: bounded, and ended by a drain."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.support.in_process import details, field_at_fault, until

from guerdon.reward.wire.tei.v1 import tei_pb2, tei_pb2_grpc

from .conftest import Harness, start_server

IN_FLIGHT = 'guerdon_requests_in_flight{method="tei_PredictPairStream"}'


def pair(answer: str = "a") -> Any:
    return tei_pb2.PredictPairRequest(inputs=["q", answer])


async def test_requests_in_flight_are_bounded_and_answered() -> None:
    async with start_server(stream_items=4) as served:
        served.behaviour.gate.clear()
        stub: Any = tei_pb2_grpc.PredictStub(served.channel)
        call = stub.PredictPairStream((pair() for _ in range(64)), timeout=60)
        await served.until_metric(IN_FLIGHT, lambda value: value >= 4)
        # Asking for the metrics lets the server read on, if it would.
        assert [await served.metric(IN_FLIGHT) for _ in range(5)] == [4] * 5
        served.behaviour.gate.set()
        assert len([reply async for reply in call]) == 64


async def test_draining_answers_what_was_read_and_then_says_unavailable(served: Harness) -> None:
    served.behaviour.gate.clear()
    stub: Any = tei_pb2_grpc.PredictStub(served.channel)
    call = stub.PredictPairStream(timeout=30)
    await call.write(pair())
    await until(lambda: served.behaviour.batches > 0)
    served.server.lifecycle.start_draining()
    served.behaviour.gate.set()
    assert len((await call.read()).predictions) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_draining_ends_a_rerank_stream_that_is_not_whole(served: Harness) -> None:
    stub: Any = tei_pb2_grpc.RerankStub(served.channel)
    call = stub.RerankStream(timeout=30)
    await call.write(tei_pb2.RerankStreamRequest(query="q", text="a"))
    await until(lambda: served.server.lifecycle.accepted > 0)
    served.server.lifecycle.start_draining()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.behaviour.batches == 0


async def test_replies_before_an_error_come_although_it_is_found_first(served: Harness) -> None:
    served.behaviour.gate.clear()
    stub: Any = tei_pb2_grpc.PredictStub(served.channel)
    call = stub.PredictPairStream(timeout=30)
    await call.write(pair())
    await until(lambda: served.behaviour.batches > 0)
    await call.write(tei_pb2.PredictPairRequest())
    failed = (
        'guerdon_requests_total{class="online",code="INVALID_ARGUMENT",'
        'method="tei_PredictPairStream",model="unknown"}'
    )
    await served.until_metric(failed, lambda value: value >= 1)
    served.behaviour.gate.set()
    assert len((await call.read()).predictions) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert field_at_fault(details(caught.value)) == "inputs"


async def test_several_models_and_no_default_are_refused() -> None:
    async with start_server(models={"m": "first", "n": "second"}) as served:
        stub: Any = tei_pb2_grpc.PredictStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PredictPair(pair(), timeout=30)
        assert field_at_fault(details(caught.value)) == "model"


async def test_the_default_model_is_asked() -> None:
    models = {"m": "first", "n": "second"}
    async with start_server(models=models, formats={"default_model": "n"}) as served:
        info: Any = tei_pb2_grpc.InfoStub(served.channel)
        reply = await info.Info(tei_pb2.InfoRequest(), timeout=30)
        assert reply.model_id == "n"
