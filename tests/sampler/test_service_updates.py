"""UpdateWeights over a real socket: all or nothing, one at a time, nobody's work lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.formula_engine import token_of
from tests.support.in_process import details, field_at_fault, reply_of, until
from tests.support.sampler_service import (
    WEIGHTS,
    Harness,
    begin,
    chunk,
    commit,
    item,
    request,
    start_sampler,
    update,
)

from guerdon.serving.errors import UpdateRefused
from guerdon.v1 import policy_pb2

OTHER = bytes(range(1, 39))
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def served() -> Any:
    async with start_sampler() as harness:
        yield harness


async def refusal(served: Harness, steps: Any, seconds: float = 20) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reply_of(served.policy.UpdateWeights(steps, timeout=seconds))
    return caught.value


async def policy(served: Harness) -> policy_pb2.GetPolicyResponse:
    reply: policy_pb2.GetPolicyResponse = await served.policy.GetPolicy(
        policy_pb2.GetPolicyRequest()
    )
    return reply


async def usable(served: Harness, version: int) -> None:
    """Nothing is left of an update that was refused, and the next one is taken."""
    assert served.engine.behaviour.staged == 0
    assert (await policy(served)).weight_version == version
    await served.still_serves()
    await served.publish(version + 1)


async def test_new_weights_serve_from_the_commit_on(served: Harness) -> None:
    canary = policy_pb2.Canary(token_ids=[1, 2, 3], logprobs=[-1.0, -2.0])
    reply = await served.publish(3, canaries=[canary])
    assert (reply.version, reply.canary_tokens) == (3, 2)
    assert reply.canary_mean_difference == pytest.approx(1e-6)
    assert reply.pause.ToTimedelta().total_seconds() == pytest.approx(0.2)
    assert reply.receive.ToTimedelta().total_seconds() > 0
    found = await policy(served)
    assert found.weight_version == 3
    assert found.weight_sha256 == hashlib.sha256(WEIGHTS).digest()
    (drawn,) = await served.generate(item(4, 5))
    assert drawn.token_ids[0] == token_of(sum(WEIGHTS), [4, 5], 0, 0, 0)
    assert [s.version for s in drawn.spans] == [3]
    assert served.engine.behaviour.staged == 0
    for line, value in (
        ("weight_version", 3),
        ('updates_total{outcome="published",source="stream"}', 1),
        ('update_seconds_count{phase="receive"}', 1),
        ('update_seconds_sum{phase="load"}', 0.1),
        ('update_seconds_sum{phase="canary"}', 0.05),
        ('update_seconds_sum{phase="pause"}', 0.2),
        ('canary_difference{of="max"}', 2e-6),
        ("update_bytes_total", len(WEIGHTS)),
        ('requests_total{code="OK",method="UpdateWeights"}', 1),
    ):
        assert await served.metric(line) == pytest.approx(value), line


async def test_generation_in_flight_goes_on_with_a_span_for_each_version(served: Harness) -> None:
    behaviour = served.engine.behaviour
    behaviour.seconds_per_token = 0.01
    drawing = asyncio.ensure_future(served.generate(item(1, 2), max_tokens=60, ignore_eos=True))
    for version, weights in ((1, WEIGHTS), (2, OTHER)):
        before = behaviour.tokens
        behaviour.gate.set()
        await until(lambda: behaviour.tokens > before)  # noqa: B023
        behaviour.gate.clear()
        await served.publish(version, weights)
    behaviour.gate.set()
    (reply,) = await drawing
    assert [span.version for span in reply.spans] == [0, 1, 2]
    assert reply.spans[0].start == 0
    assert reply.spans[-1].end == len(reply.token_ids) == 60
    weights = {0: 0, 1: sum(WEIGHTS), 2: sum(OTHER)}
    for span in reply.spans:
        for place in range(span.start, span.end):
            drawn = token_of(weights[span.version], [1, 2], 0, place, 0)
            assert reply.token_ids[place] == drawn
    assert await served.metric("mixed_completions_total") == 1


async def test_calls_wait_while_an_update_stops_generation(served: Harness) -> None:
    served.engine.behaviour.publish_gate.clear()
    publishing = asyncio.ensure_future(served.publish(1))
    await until(lambda: not served.engine._resumed.is_set())
    waiting = asyncio.ensure_future(served.generate(item(n=2)))
    await until(lambda: served.engine.running == 2)
    assert await served.metric("waiting") == 2
    assert not waiting.done()
    served.engine.behaviour.publish_gate.set()
    await publishing
    assert {s.version for r in await waiting for s in r.spans} == {1}


async def test_a_new_history_ends_the_old_ones_generation(served: Harness) -> None:
    await served.publish(7)
    served.engine.behaviour.gate.clear()
    drawing = asyncio.ensure_future(served.generate(item(n=2)))
    await until(lambda: served.engine.running == 2)
    publishing = asyncio.ensure_future(served.publish(1, OTHER, reset=True))
    await publishing
    served.engine.behaviour.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drawing
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert (await policy(served)).weight_version == 1


SPECS = begin(1).begin.tensors
BEGINS = {
    "no source": (policy_pb2.UpdateWeightsRequest(begin={"version": 1, "tensors": SPECS}),
                  "begin.source"),
    "version 0": (begin(0), "begin.version"),
    "no tensors": (begin(5, tensors=[]), "begin.tensors"),
    "no name": (begin(5, tensors=[{"dtype": "float32"}]), "begin.tensors[0].name"),
    "twice": (begin(5, tensors=[SPECS[0], SPECS[0]]), "begin.tensors[1].name"),
    "dtype": (begin(5, tensors=[{"name": "a", "dtype": "int8"}]), "begin.tensors[0].dtype"),
    "shape": (
        begin(5, tensors=[{"name": "a", "dtype": "float32", "shape": [2**40, 2**40]}]),
        "begin.tensors[0].shape",
    ),
    "nccl address": (begin(5, nccl={"master_port": 1}), "begin.nccl.master_address"),
    "nccl port": (begin(5, nccl={"master_address": "a"}), "begin.nccl.master_port"),
    "nccl rank": (
        begin(5, nccl={"master_address": "a", "master_port": 1, "world_size": 2, "rank_offset": 2}),
        "begin.nccl.rank_offset",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEGINS)
async def test_a_begin_that_cannot_be(served: Harness, name: str) -> None:
    message, field = BEGINS[name]
    error = await refusal(served, iter([message]))
    assert error.code() is INVALID, error.details()
    assert field_at_fault(details(error)) == field
    await usable(served, 0)


def whole(*changed: Any) -> list[policy_pb2.UpdateWeightsRequest]:
    return [begin(1), *changed]


FIRST, SECOND = chunk(0, 0, WEIGHTS[:32]), chunk(1, 0, WEIGHTS[32:])
CANARY = {"token_ids": [1, 2], "logprobs": [-1.0]}
STREAMS: dict[str, tuple[Iterable[Any], grpc.StatusCode, str]] = {
    "nothing": ([], INVALID, "commit: is required"),
    "no begin": ([FIRST], INVALID, "begin: is required first"),
    "no step": ([policy_pb2.UpdateWeightsRequest()], INVALID, "step: one of"),
    "begin twice": (whole(begin(1)), INVALID, "begin: comes once, first"),
    "no commit": (whole(FIRST, SECOND), INVALID, "the stream ended before it"),
    "nothing sent": (whole(commit()), PRECONDITION, "a.weight lacks 32 bytes"),
    "a tensor missing": (whole(FIRST, commit()), PRECONDITION, "b.weight lacks 6 bytes"),
    "half a tensor": (
        whole(FIRST, chunk(1, 0, WEIGHTS[32:35]), commit()), PRECONDITION, "b.weight lacks 3 bytes"
    ),
    "out of order": (whole(SECOND), INVALID, "b.weight came before"),
    "a gap": (whole(chunk(0, 4, WEIGHTS[4:32])), INVALID, "of a.weight is 4"),
    "overlapping": (
        whole(chunk(0, 0, WEIGHTS[:10]), chunk(0, 9, WEIGHTS[9:32])), INVALID, "of a.weight is 9"
    ),
    "too long": (whole(chunk(0, 0, WEIGHTS[:33])), INVALID, "past the end of a.weight"),
    "no such tensor": (whole(chunk(2, 0, b"x")), INVALID, "chunk.tensor"),
    "no checksum": (whole(FIRST, SECOND, commit(sha256=b"")), INVALID, "commit.sha256"),
    "another checksum": (whole(FIRST, SECOND, commit(OTHER)), PRECONDITION, "checksum"),
    "tolerance": (
        whole(FIRST, SECOND, commit(mean_tolerance=float("nan"))), INVALID, "commit.mean_tolerance"
    ),
    "canary too short": (
        whole(FIRST, SECOND, commit(canaries=[{"token_ids": [1]}])), INVALID,
        "commit.canaries[0].token_ids",
    ),
    "canary of unknown tokens": (
        whole(FIRST, SECOND, commit(canaries=[CANARY, {"token_ids": [1, 1000], "logprobs": [0]}])),
        INVALID, "commit.canaries[1].token_ids[1]",
    ),
    "canary without its log-probabilities": (
        whole(FIRST, SECOND, commit(canaries=[{"token_ids": [1, 2]}])), INVALID,
        "commit.canaries[0].logprobs",
    ),
    "canary that is no log-probability": (
        whole(FIRST, SECOND, commit(canaries=[{"token_ids": [1, 2], "logprobs": [0.5]}])), INVALID,
        "commit.canaries[0].logprobs",
    ),
    "another model's": (
        [begin(1, tensors=[{"name": "c", "dtype": "float32", "shape": [1]}])], PRECONDITION,
        "not the model's: ['c']",
    ),
    "another shape": (
        [begin(1, tensors=[{"name": "a.weight", "dtype": "float32", "shape": [4, 3]}, SPECS[1]])],
        PRECONDITION, "not the model's: ['a.weight']",
    ),
    "another dtype": (
        [begin(1, tensors=[SPECS[0], {"name": "b.weight", "dtype": "float16", "shape": [3]}])],
        PRECONDITION, "not the model's: ['b.weight']",
    ),
    "nccl without a GPU": (
        [begin(1, nccl={"master_address": "a", "master_port": 1, "world_size": 2,
                        "rank_offset": 1})],
        PRECONDITION, "NCCL",
    ),
    "a shared path without permission": (
        [begin(1, shared_path={"path": "/etc/passwd"})], PRECONDITION, "--shared-dir"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
async def test_whatever_else_comes_leaves_the_old_weights(served: Harness, name: str) -> None:
    steps, code, said = STREAMS[name]
    error = await refusal(served, iter(steps))
    assert error.code() is code, error.details()
    assert said in error.details()
    outcomes = {INVALID: "invalid", PRECONDITION: "refused"}
    text = (await served.http.get("/metrics")).text
    assert f'updates_total{{outcome="{outcomes[code]}",source=' in text
    await usable(served, 0)


async def test_a_version_must_be_newer_unless_it_begins_a_history(served: Harness) -> None:
    await served.publish(5)
    for version in (5, 4, 1):
        error = await refusal(served, update(version, OTHER))
        assert error.code() is INVALID
        assert field_at_fault(details(error)) == "begin.version"
        assert (await policy(served)).weight_sha256 == hashlib.sha256(WEIGHTS).digest()
    await served.publish(1, OTHER, reset=True)
    assert (await policy(served)).weight_version == 1


async def test_bytes_that_are_no_step(served: Harness) -> None:
    method = served.channel.stream_unary("/guerdon.v1.PolicyService/UpdateWeights")
    for steps in ([b"\xff\xff"], [begin(1).SerializeToString(), b"\xff\xff"]):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reply_of(method(iter(steps)))
        assert caught.value.code() is INVALID
        await usable(served, served.engine.version)


async def half(steps: Iterable[Any], goes_on: asyncio.Event) -> AsyncIterator[Any]:
    """A stream that stands still after these."""
    for step in steps:
        yield step
    await goes_on.wait()


async def test_one_update_at_a_time(served: Harness) -> None:
    forever = asyncio.Event()
    first = served.policy.UpdateWeights(half([begin(1), FIRST], forever))
    await until(lambda: served.engine.behaviour.staged == 1)
    error = await refusal(served, update(2, OTHER))
    assert error.code() is grpc.StatusCode.ABORTED
    assert error.details() == "an update to version 1 is under way"
    assert await served.metric('updates_total{outcome="busy",source="stream"}') == 1
    first.cancel()
    await until(lambda: served.engine.behaviour.staged == 0)
    await until(lambda: served.server.lifecycle.accepted == 0)
    assert await served.metric('updates_total{outcome="abandoned",source="stream"}') == 1
    await usable(served, 0)


async def test_a_trainer_that_falls_silent_does_not_hold_the_place() -> None:
    async with start_sampler(update_idle_seconds=0.15) as served:
        forever = asyncio.Event()
        error = await refusal(served, half([begin(1), FIRST], forever))
        assert error.code() is grpc.StatusCode.ABORTED
        assert "nothing came for 0.15 s" in error.details()
        await usable(served, 0)


async def test_the_deadline_ends_an_update_that_is_not_committed(served: Harness) -> None:
    forever = asyncio.Event()
    error = await refusal(served, half([begin(1), FIRST], forever), seconds=0.2)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: served.engine.behaviour.staged == 0)
    await usable(served, 0)


async def test_a_caller_who_leaves_after_the_commit_leaves_a_whole_update(served: Harness) -> None:
    served.engine.behaviour.publish_gate.clear()
    call = served.policy.UpdateWeights(update(1))
    await until(lambda: not served.engine._resumed.is_set())
    call.cancel()
    await asyncio.sleep(0.05)
    assert served.engine.behaviour.staged == 1
    error = await refusal(served, update(2))
    assert error.code() is grpc.StatusCode.ABORTED
    served.engine.behaviour.publish_gate.set()
    await until(lambda: served.engine.behaviour.staged == 0)
    assert (await policy(served)).weight_version == 1
    await usable(served, 1)


@pytest.mark.parametrize(
    ("raised", "code", "outcome"),
    [
        (UpdateRefused("the canaries part: mean 0.7"), PRECONDITION, "refused"),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL, "failed"),
    ],
)
async def test_an_engine_that_refuses_or_fails(
    served: Harness, raised: Exception, code: Any, outcome: str
) -> None:
    served.engine.behaviour.publish_error = raised
    error = await refusal(served, update(1))
    assert error.code() is code
    assert "secret" not in error.details()
    assert await served.metric(f'updates_total{{outcome="{outcome}",source="stream"}}') == 1
    served.engine.behaviour.publish_error = None
    await usable(served, 0)


async def test_updates_can_be_off() -> None:
    async with start_sampler(updates=False) as served:
        error = await refusal(served, update(1))
        assert error.code() is PRECONDITION
        assert "--no-updates" in error.details()


async def shared(served: Harness, path: Path | str, version: int = 1) -> Any:
    steps = [begin(version, shared_path={"path": str(path)}), commit()]
    return await reply_of(served.policy.UpdateWeights(iter(steps), timeout=20))


async def test_a_file_below_a_shared_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "v1").mkdir(parents=True)
    file = tmp_path / "in" / "v1" / "model.safetensors"
    file.write_bytes(WEIGHTS)
    async with start_sampler(shared_dirs=[tmp_path / "in"]) as served:
        assert (await policy(served)).shared_path
        assert (await shared(served, file)).version == 1
        assert (await shared(served, file.parent, 2)).version == 2
        assert await served.metric('updates_total{outcome="published",source="shared_path"}') == 2
        error = await refusal(served, iter([begin(3, shared_path={"path": str(file)}), FIRST]))
        assert "only where the source is stream" in error.details()


async def test_paths_that_lead_out_of_the_shared_folders(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    secret = outside / "model.safetensors"
    secret.write_bytes(WEIGHTS)
    (inside / "link.safetensors").symlink_to(secret)
    (inside / "linked").symlink_to(outside)
    (inside / "folder").mkdir()
    (inside / "folder" / "model.safetensors").symlink_to(secret)
    (inside / "model.bin").write_bytes(WEIGHTS)
    (inside / "empty").mkdir()
    (inside / "loop").symlink_to(inside / "loop")
    bad = [
        secret,
        outside / "nothing",
        inside / ".." / "out" / "model.safetensors",
        inside / "link.safetensors",
        inside / "linked",
        inside / "linked" / "model.safetensors",
        inside / "folder",
        inside / "model.bin",
        inside / "empty",
        inside / "loop",
        inside / "nothing.safetensors",
        "model.safetensors",
        "",
        f"{inside}/\\0",
        "/",
        f"{inside}x",
    ]
    async with start_sampler(shared_dirs=[inside]) as served:
        for path in bad:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await shared(served, path)
            assert caught.value.code() is INVALID, path
            assert field_at_fault(details(caught.value)) == "begin.shared_path.path"
        # What is outside isn't told apart from what isn't there.
        answers = set()
        for path in (secret, outside / "nothing"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await shared(served, path)
            answers.add(caught.value.details())
        assert len(answers) == 1
        await usable(served, 0)


async def test_min_version_is_met_by_the_version_that_is_published(served: Harness) -> None:
    await served.publish(2)
    replies = [r async for r in served.policy.Generate(request(item(), min_version=2))]
    assert len(replies) == 1
    with pytest.raises(grpc.aio.AioRpcError, match="serves version 2, older than 3"):
        await served.generate(item(), min_version=3)
