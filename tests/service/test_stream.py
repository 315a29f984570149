"""ScoreStream: replies as they finish, faults alone, bounded items in flight."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.support.in_process import field_at_fault, until

from guerdon.v1 import reward_pb2

from .conftest import Harness, start_server
from .fake import expected_score, revision_of, words
from .messages import item

REVISION = revision_of("first")


def asked(request_id: str, text: str = "q", answer: str = "a", **more: Any) -> Any:
    return reward_pb2.ScoreStreamRequest(
        request_id=request_id, model=more.pop("model", "m"), item=item(text, answer), **more
    )


async def answers(served: Harness, *requests: Any) -> dict[str, Any]:
    """Send all, close, and gather the replies by id."""
    found: dict[str, Any] = {}
    async for reply in served.rewards.ScoreStream(iter(requests), timeout=30):
        assert reply.request_id not in found
        found[reply.request_id] = reply
    return found


async def test_every_item_gets_its_own_answer(served: Harness) -> None:
    requests = [asked(f"r{i}", f"question {i}", f"answer {i}") for i in range(300)]
    found = await answers(served, *requests)
    assert len(found) == 300
    for i in range(300):
        scores = found[f"r{i}"].scores
        tokens = words(f"question {i}") + words(f"answer {i}")
        assert scores.item.scores[0].score == expected_score(REVISION, tokens)
        assert scores.info.revision == REVISION
        assert scores.timing.total.ToTimedelta().total_seconds() > 0


async def test_a_bad_item_fails_alone_with_its_status(served: Harness) -> None:
    found = await answers(
        served,
        asked("good"),
        asked("empty", answer="a", timeout=Duration(seconds=0)),
        asked("negative", timeout=Duration(seconds=-1)),
        asked("invalid", timeout=Duration(seconds=1, nanos=-5)),
        asked("nobody", model="nobody"),
        reward_pb2.ScoreStreamRequest(request_id="bare", model="m"),
        asked("x" * 300),
        asked("good too"),
    )
    assert found["good"].HasField("scores")
    assert found["good too"].HasField("scores")
    faults = {key: reply.error for key, reply in found.items() if reply.HasField("error")}
    for key, field in {
        "empty": "timeout", "negative": "timeout", "invalid": "timeout",
        "bare": "item.prompt", "x" * 300: "request_id",
    }.items():  # fmt: skip
        assert faults[key].code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert field_at_fault(faults[key]) == field
    assert faults["nobody"].code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_an_empty_id_and_garbage_fail_alone(served: Harness) -> None:
    stream: Any = served.channel.stream_stream("/guerdon.v1.RewardService/ScoreStream")
    sent = [b"\xff\xff garbage", asked("").SerializeToString(), asked("ok").SerializeToString()]
    replies = [
        reward_pb2.ScoreStreamResponse.FromString(data)
        async for data in stream(iter(sent), timeout=30)
    ]
    by_id = {reply.request_id: reply for reply in replies}
    assert by_id["ok"].HasField("scores")
    errors = [reply.error for reply in replies if not reply.request_id]
    assert sorted(field_at_fault(error) for error in errors) == ["request", "request_id"]


async def test_an_id_in_flight_cannot_be_used_again_but_later(served: Harness) -> None:
    served.behaviour.gate.clear()
    call = served.rewards.ScoreStream(timeout=30)
    await call.write(asked("same"))
    await call.write(asked("same"))
    first = await call.read()
    assert first.request_id == "same"
    assert field_at_fault(first.error) == "request_id"
    served.behaviour.gate.set()
    assert (await call.read()).HasField("scores")
    await call.write(asked("same"))
    assert (await call.read()).HasField("scores")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_an_items_timeout_fails_it_alone_and_costs_no_computation(served: Harness) -> None:
    served.behaviour.gate.clear()
    call = served.rewards.ScoreStream(timeout=30)
    await call.write(asked("slow"))
    await until(lambda: served.behaviour.batches > 0)
    await call.write(asked("short", timeout=Duration(nanos=50_000_000)))
    late = await call.read()
    assert late.request_id == "short"
    assert late.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    served.behaviour.gate.set()
    assert (await call.read()).request_id == "slow"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert served.behaviour.sequences == 1


async def test_items_in_flight_are_bounded() -> None:
    async with start_server(stream_items=4, queue={"max_queued_tokens": 10**7}) as served:
        served.behaviour.gate.clear()
        sent = 0

        async def source() -> AsyncIterator[Any]:
            nonlocal sent
            for i in range(64):
                sent += 1
                yield asked(f"r{i}", "x" * 500_000 if i >= 4 else "q")

        call = served.rewards.ScoreStream(source(), timeout=60)
        await served.until_metric(
            'guerdon_requests_in_flight{method="ScoreStream"}', lambda value: value >= 4
        )
        await asyncio.sleep(0.2)
        assert await served.metric('guerdon_requests_in_flight{method="ScoreStream"}') == 4
        # The sender was stopped by flow control: the windows hold a few large messages at most.
        assert sent < 64
        served.behaviour.gate.set()
        count = 0
        async for _ in call:
            count += 1
        assert count == 64


async def test_a_caller_who_leaves_takes_its_queued_work_along(served: Harness) -> None:
    served.behaviour.gate.clear()
    call = served.rewards.ScoreStream(timeout=30)
    await call.write(asked("first"))
    await until(lambda: served.behaviour.batches > 0)
    for i in range(20):
        await call.write(asked(f"r{i}"))
    await served.until_metric('guerdon_queue_items{class="online"}', lambda value: value >= 21)
    call.cancel()
    await served.until_metric(
        'guerdon_requests_in_flight{method="ScoreStream"}', lambda value: value <= 0
    )
    served.behaviour.gate.set()
    await served.still_serves()
    assert served.behaviour.sequences == 2  # the one that was computing, and the last call
    line = 'guerdon_dropped_total{class="online",model="m",reason="cancelled",stage='
    assert await served.metric(line + '"queued"}') == 20


async def test_replies_do_not_wait_for_the_streams_end(served: Harness) -> None:
    call = served.rewards.ScoreStream(timeout=30)
    for i in range(3):
        await call.write(asked(f"r{i}"))
        assert (await call.read()).request_id == f"r{i}"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_draining_answers_what_was_read_and_then_says_unavailable(served: Harness) -> None:
    served.behaviour.gate.clear()
    call = served.rewards.ScoreStream(timeout=30)
    await call.write(asked("accepted"))
    await until(lambda: served.behaviour.batches > 0)
    served.server.lifecycle.start_draining()
    served.behaviour.gate.set()
    assert (await call.read()).HasField("scores")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_ends_under_its_replies_is_no_error_of_ours(
    served: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async def endless() -> AsyncIterator[Any]:
        for i in itertools.count():
            yield asked(f"r{i}")

    async def send_for(seconds: float) -> None:
        async for _ in served.rewards.ScoreStream(endless(), timeout=seconds):
            pass

    served.behaviour.seconds = 0.02  # so that replies are due when the stream ends
    for _ in range(5):
        # Its code is grpc.aio's own where the end comes while the caller writes.
        with pytest.raises(grpc.aio.AioRpcError):
            await send_for(0.2)
    await until(lambda: served.server.lifecycle.accepted == 0)
    served.behaviour.seconds = 0.0
    await served.still_serves()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
