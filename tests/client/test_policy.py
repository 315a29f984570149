"""The policy client against the fake sampler, over a real socket."""

# ruff: noqa: ASYNC110, SIM117 - it polls another process's state; nesting reads better

from __future__ import annotations

import asyncio
import hashlib

import grpc
import numpy as np
import pytest

from guerdon.client import (
    Aborted,
    AsyncPolicyClient,
    Canary,
    Completion,
    CompletionProgress,
    FailedPrecondition,
    GenerateItem,
    Internal,
    InvalidArgument,
    Overloaded,
    PolicyClient,
    Retry,
    TensorSpec,
    TokenIds,
    Unavailable,
)
from guerdon.client import _policy_wire as wire
from guerdon.client.testing import FakePolicyServer
from guerdon.v1 import policy_pb2

PROMPT = TokenIds((5, 6, 7))
SPECS = [TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "bfloat16", (4,))]
DATA = [np.arange(6, dtype=np.float32), np.arange(4, dtype=np.uint16)]


async def collect(
    client: AsyncPolicyClient, items: list[GenerateItem], **options
) -> list[Completion]:
    options.setdefault("max_tokens", 8)
    return [completion async for completion in client.generate(items, **options)]


async def test_every_completion_comes_once_with_its_tokens_and_spans() -> None:
    async with (
        FakePolicyServer(delay=(0, 0.01)) as server,
        AsyncPolicyClient(server.target) as client,
    ):
        items = [GenerateItem(PROMPT, n=5, id="x"), GenerateItem("Hi", n=3)]
        found = await collect(client, items)
    assert sorted((c.item, c.sample) for c in found) == [(0, i) for i in range(5)] + [
        (1, i) for i in range(3)
    ]
    for completion in found:
        assert completion.id == ("x" if completion.item == 0 else "")
        assert (
            len(completion.token_ids) == len(completion.logprobs) == len(completion.versions) <= 8
        )
        assert completion.finished == (completion.token_ids[-1] == server.eos)
        if completion.item == 0:
            assert completion.prompt_token_ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize("seed", [None, 11])
async def test_a_broken_stream_is_asked_again_for_what_is_missing(seed: int | None) -> None:
    async with FakePolicyServer() as server:
        async with AsyncPolicyClient(server.target, retry=Retry(initial=0.01)) as client:
            whole = await collect(client, [GenerateItem(PROMPT, n=6, seed=seed)])
            server.break_streams(after=2)
            server.break_streams(after=3 if seed is None else 4)
            again = await collect(client, [GenerateItem(PROMPT, n=6, seed=seed)])
    assert sorted(c.sample for c in again) == list(range(6))
    asked = [request.items[0].n for method, request in server.calls if method == "Generate"]
    assert asked == ([6, 6, 4, 1] if seed is None else [6, 6, 6, 6])
    if seed is not None:
        texts = [{c.sample: c.token_ids.tolist() for c in found} for found in (whole, again)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("seed", [None, 11])
async def test_progress_after_a_break_is_of_what_has_not_come(seed: int | None) -> None:
    came: set[int] = set()
    told: list[list[int]] = []

    def progress(each: CompletionProgress) -> None:
        assert each.sample not in came
        if each.tokens == 0 and (not told or each.sample in told[-1]):
            told.append([])  # a stream begins with all that it was asked for
        told[-1].append(each.sample)

    async with FakePolicyServer() as server:
        async with AsyncPolicyClient(server.target, retry=Retry(initial=0.01)) as client:
            server.break_streams(after=2)
            found = client.generate(
                [GenerateItem(PROMPT, n=6, seed=seed)], max_tokens=8, on_progress=progress
            )
            async for completion in found:
                assert completion.sample in told[-1]
                came.add(completion.sample)
    first, second = told
    assert set(first) == came == set(range(6))
    assert len(set(second)) == 4


@pytest.mark.parametrize(
    "wrong",
    [{"item": 1}, {"sample": 2}, {"tokens": 9}],
    ids=["an item that was not asked for", "a completion that was not", "too many tokens"],
)
def test_progress_that_cannot_be_right_is_refused(wrong: dict[str, int]) -> None:
    pending = wire.Pending([GenerateItem(PROMPT, n=2)])
    pending.request(policy_pb2.GenerateRequest())
    right = {"item": 0, "sample": 1, "tokens": 8}

    def reply(**changes: int) -> policy_pb2.GenerateResponse:
        progress = policy_pb2.CompletionProgress(**{**right, **changes})
        return policy_pb2.GenerateResponse(progress=[progress])

    assert pending.progress(reply(), max_tokens=8) == [CompletionProgress(0, 1, 8)]
    with pytest.raises(Internal):
        pending.progress(reply(**wrong), max_tokens=8)


async def test_errors_keep_their_kind() -> None:
    async with FakePolicyServer() as server:
        async with AsyncPolicyClient(server.target, retry=Retry(attempts=1)) as client:
            with pytest.raises(FailedPrecondition, match="older than 3"):
                await collect(client, [GenerateItem(PROMPT)], min_version=3)
            server.fail(grpc.StatusCode.ABORTED, "a new history")
            with pytest.raises(Aborted, match="a new history"):
                await collect(client, [GenerateItem(PROMPT)])
            server.break_streams(after=0)
            with pytest.raises(Unavailable):
                await collect(client, [GenerateItem(PROMPT)])
            server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.5)
            with pytest.raises(Overloaded) as caught:
                await collect(client, [GenerateItem(PROMPT)])
            assert caught.value.retry_after == 0.5


@pytest.mark.parametrize(
    ("items", "options", "field"),
    [
        ([], {}, "items"),
        ([GenerateItem(PROMPT, n=0)], {}, "items[0].n"),
        ([GenerateItem(PROMPT, seed=-1)], {}, "items[0].seed"),
        ([GenerateItem(PROMPT)], {"max_tokens": 0}, "options.max_tokens"),
        ([GenerateItem(PROMPT)], {"temperature": float("nan")}, "options.temperature"),
        ([GenerateItem(PROMPT)], {"top_p": 0.0}, "options.top_p"),
        ([GenerateItem(PROMPT)], {"top_k": -1}, "options.top_k"),
    ],
)
async def test_what_cannot_be_is_refused_before_it_is_sent(items, options, field) -> None:
    async with AsyncPolicyClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument) as caught:
            await collect(client, items, **options)
    assert caught.value.field_violations[0].field == field


@pytest.mark.parametrize(
    ("ids", "logprobs"), [([3, 4], [-1.0]), ([3], [float("nan")]), ([3], [0.5]), ([], [])]
)
async def test_a_reply_that_cannot_be_right_is_no_completion(ids, logprobs) -> None:
    def policy(*_: object):
        return ids or [3], logprobs

    async with FakePolicyServer(policy) as server, AsyncPolicyClient(server.target) as client:
        with pytest.raises(Internal):
            await collect(client, [GenerateItem(PROMPT)])


async def test_leaving_stops_the_call() -> None:
    async with FakePolicyServer(delay=(30, 30)) as server:
        async with AsyncPolicyClient(server.target) as client:
            task = asyncio.create_task(collect(client, [GenerateItem(PROMPT, n=3)]))
            while not (await client.get_policy()).running:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(10):
                while (await client.get_policy()).running:
                    await asyncio.sleep(0.01)


async def test_weights_arrive_whole_with_their_checksum_and_canaries() -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        canary = Canary([3, 4, 5], [-1.0, -2.0])
        report = await client.update_weights(4, DATA, specs=SPECS, canaries=[canary], chunk_bytes=5)
        assert (report.version, report.canary_tokens) == (4, 2)
        info = await client.get_policy()
        with pytest.raises(InvalidArgument, match="version"):
            await client.update_weights(4, DATA, specs=SPECS)
        assert (await client.update_weights(1, DATA, specs=SPECS, reset=True)).version == 1
    taken = server.updates[0]
    assert taken.tensors == {"a": DATA[0].tobytes(), "b": DATA[1].tobytes()}
    assert taken.specs == tuple(SPECS)
    assert taken.canaries == (([3, 4, 5], [-1.0, -2.0]),)
    assert info.weight_sha256 == hashlib.sha256(DATA[0].tobytes() + DATA[1].tobytes()).digest()


@pytest.mark.parametrize("data", [DATA[:1], [DATA[0], DATA[1][:3]], [*DATA, DATA[0]]])
async def test_tensors_that_do_not_fit_their_specs_change_nothing(data) -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        with pytest.raises(InvalidArgument, match="source"):
            await client.update_weights(1, data, specs=SPECS)
        assert (await client.get_policy()).weight_version == 0
    assert server.updates == []


async def test_a_source_that_fails_keeps_its_own_error() -> None:
    def tensors():
        yield DATA[0]
        raise RuntimeError("the device is gone")

    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        with pytest.raises(RuntimeError, match="the device is gone"):
            await client.update_weights(1, tensors(), specs=SPECS)
        assert (await client.get_policy()).weight_version == 0


async def test_a_restarted_fake_is_a_fresh_process() -> None:
    async with FakePolicyServer() as server, AsyncPolicyClient(server.target) as client:
        await client.update_weights(4, DATA, specs=SPECS)
        before = await client.get_policy()
        await server.restart()
        after = await client.get_policy()
    assert (before.weight_version, after.weight_version) == (4, 0)
    assert before.instance != after.instance


def test_the_synchronous_client_does_the_same() -> None:
    with FakePolicyServer() as server, PolicyClient(server.target) as client:
        found = client.generate([GenerateItem(PROMPT, n=3)], max_tokens=4, return_text=True)
        assert [c.sample for c in found] == [0, 1, 2]
        assert all(c.text for c in found)
        assert client.update_weights(2, DATA, specs=SPECS).version == 2
        assert client.get_policy().weight_version == 2
