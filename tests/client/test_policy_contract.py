"""The fake sampler and the real service (above an engine that is a formula): held to the same."""

# ruff: noqa: ASYNC110 - it polls another process's state; nesting reads better

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.formula_engine import MODEL
from tests.support.in_process import reply_of
from tests.support.sampler_service import WEIGHTS, begin, chunk, commit, start_sampler, update

from guerdon.client import (
    Aborted,
    AsyncPolicyClient,
    Canary,
    Completion,
    CompletionProgress,
    FailedPrecondition,
    GenerateItem,
    GuerdonError,
    InvalidArgument,
    Overloaded,
    Retry,
    TensorSpec,
    TokenIds,
)
from guerdon.client.errors import from_rpc_error
from guerdon.client.testing import FakePolicyServer
from guerdon.v1 import policy_pb2, policy_pb2_grpc

SPECS = [TensorSpec(spec.name, spec.dtype, spec.shape) for spec in MODEL]
DATA = [WEIGHTS[:32], WEIGHTS[32:]]
PROMPT = TokenIds((5, 6, 7))
LIMIT = 16
ONCE = Retry(attempts=1)

both = pytest.mark.parametrize("kind", ["fake", "real"])


@asynccontextmanager
async def sampler(kind: str, *, slow: bool = False) -> AsyncIterator[AsyncPolicyClient]:
    """A client of a sampler of the kind; slow ones take half a second for a completion."""
    async with AsyncExitStack() as stack:
        if kind == "fake":
            fake = FakePolicyServer(
                delay=(0.5, 0.5) if slow else (0, 0), tensors=SPECS, limit=LIMIT
            )
            target = (await stack.enter_async_context(fake)).target
        else:
            real = await stack.enter_async_context(start_sampler(max_in_flight=LIMIT))
            real.engine.behaviour.seconds_per_token = 0.06 if slow else 0.0
            target = f"127.0.0.1:{real.ports.port}"
        yield await stack.enter_async_context(AsyncPolicyClient(target, retry=ONCE))


async def collect(client: AsyncPolicyClient, *items: GenerateItem, **options) -> list[Completion]:
    options.setdefault("max_tokens", 9)
    found = [completion async for completion in client.generate(items, **options)]
    return sorted(found, key=lambda completion: (completion.item, completion.sample))


async def drawing(client: AsyncPolicyClient) -> asyncio.Task[list[Completion]]:
    """A call whose completions are being drawn."""
    task = asyncio.create_task(collect(client, GenerateItem(PROMPT, n=4)))
    while not (await client.get_policy()).running:
        await asyncio.sleep(0.005)
    return task


@both
async def test_completions(kind: str) -> None:
    async with sampler(kind) as client:
        items = [GenerateItem(PROMPT, n=5, id="a"), GenerateItem("two words", n=2)]
        found = await collect(client, *items, return_text=True)
        assert [(c.item, c.sample) for c in found] == [
            *((0, i) for i in range(5)),
            *((1, i) for i in range(2)),
        ]
        for completion in found:
            assert completion.id == ("a" if completion.item == 0 else "")
            assert 1 <= len(completion.token_ids) <= 9
            assert set(completion.versions.tolist()) == {0}
            assert completion.text
            assert completion.finished == (completion.token_ids[-1] == 2)
        assert found[0].prompt_token_ids.tolist() == [5, 6, 7]
        assert not any(c.text for c in await collect(client, GenerateItem(PROMPT)))


@both
async def test_progress_is_told_beside_the_completions_and_never_after_one(kind: str) -> None:
    async with sampler(kind) as client:
        events: list[Any] = []
        items = [GenerateItem(PROMPT, n=3), GenerateItem("two words", n=2)]
        async for completion in client.generate(items, max_tokens=9, on_progress=events.append):
            events.append(completion)
    every = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert events[: len(every)] == [CompletionProgress(*each, 0) for each in every]
    latest: dict[tuple[int, int], int] = {}
    ended: dict[tuple[int, int], int] = {}
    for event in events:
        key = (event.item, event.sample)
        assert key not in ended
        if isinstance(event, Completion):
            ended[key] = len(event.token_ids)
            assert latest[key] <= ended[key]
        else:
            assert event.tokens >= latest.get(key, 0)
            latest[key] = event.tokens
    assert sorted(ended) == every
    assert max(latest.values()) > 0


@both
async def test_a_seed_repeats_the_draw(kind: str) -> None:
    async with sampler(kind) as client:
        draws = [
            [c.token_ids.tolist() for c in await collect(client, GenerateItem(PROMPT, 4, seed))]
            for seed in (7, 7, 8)
        ]
    assert draws[0] == draws[1] != draws[2]


@both
async def test_a_completion_goes_on_from_what_was_drawn(kind: str) -> None:
    async with sampler(kind) as client:
        (begun,) = await collect(
            client, GenerateItem(PROMPT, seed=1), max_tokens=2, return_text=True
        )
        drawn = TokenIds((*PROMPT.ids, *begun.token_ids.tolist()))
        (more,) = await collect(client, GenerateItem(drawn, seed=2, drawn=2), return_text=True)
        assert more.prompt_token_ids.tolist() == [*drawn.ids]
        said = [*begun.token_ids.tolist(), *more.token_ids.tolist()]
        assert more.text in (" ".join(map(str, said)), " ".join(map(str, said[:-1])))
        for item in (GenerateItem(TokenIds((5,)), drawn=1), GenerateItem("a text", drawn=1)):
            with pytest.raises(InvalidArgument) as caught:
                await collect(client, item)
            assert [each.field for each in caught.value.field_violations] == ["items[0].drawn"]


@both
async def test_versions_of_the_weights(kind: str) -> None:
    async with sampler(kind) as client:
        with pytest.raises(FailedPrecondition, match="version 0, older than 1"):
            await collect(client, GenerateItem(PROMPT), min_version=1)
        canary = Canary([3, 4, 5], [-1.0, -2.0])
        report = await client.update_weights(4, DATA, specs=SPECS, canaries=[canary], chunk_bytes=5)
        assert (report.version, report.canary_tokens) == (4, 2)
        found = await collect(client, GenerateItem(PROMPT), min_version=4)
        assert set(found[0].versions.tolist()) == {4}
        for version in (4, 3):
            with pytest.raises(InvalidArgument) as caught:
                await client.update_weights(version, DATA, specs=SPECS)
            assert caught.value.field_violations[0].field == "begin.version"
        policy = await client.get_policy()
        assert policy.weight_version == 4
        assert policy.weight_sha256 == hashlib.sha256(WEIGHTS).digest()
        assert (await client.update_weights(1, DATA, specs=SPECS, reset=True)).version == 1
        assert (await client.get_policy()).weight_version == 1


@both
async def test_tensors_of_another_policy_are_refused_by_name(kind: str) -> None:
    async with sampler(kind) as client:
        for wrong in (
            TensorSpec("c.weight", "bfloat16", (3,)),
            TensorSpec("b.weight", "float16", (3,)),
            TensorSpec("b.weight", "bfloat16", (1, 3)),
        ):
            with pytest.raises(FailedPrecondition, match=wrong.name):
                await client.update_weights(1, DATA, specs=[SPECS[0], wrong])
        with pytest.raises(FailedPrecondition, match=r"b\.weight"):
            await client.update_weights(1, DATA[:1], specs=SPECS[:1])
        assert (await client.get_policy()).weight_version == 0


@both
async def test_generation_goes_on_under_new_weights_and_tells_them_apart(kind: str) -> None:
    async with sampler(kind, slow=True) as client:
        for version in range(1, 21):  # an update may come before the first token, or too late
            task = await drawing(client)
            await asyncio.sleep(0.1)
            await client.update_weights(version, DATA, specs=SPECS)
            found = await task
            assert len(found) == 4
            for completion in found:
                assert completion.versions.tolist() == sorted(completion.versions.tolist())
                assert set(completion.versions.tolist()) <= {version - 1, version}
            if any(len(completion.spans) == 2 for completion in found):
                return
    pytest.fail("none of 20 updates came in the middle of a completion")


@both
async def test_a_new_history_ends_the_generation(kind: str) -> None:
    async with sampler(kind, slow=True) as client:
        task = await drawing(client)
        await client.update_weights(1, DATA, specs=SPECS, reset=True)
        with pytest.raises(Aborted, match="reset"):
            await task
        assert set((await collect(client, GenerateItem(PROMPT)))[0].versions.tolist()) == {1}


@both
async def test_overload(kind: str) -> None:
    async with sampler(kind, slow=True) as client:
        with pytest.raises(InvalidArgument) as caught:
            await collect(client, GenerateItem(PROMPT, n=LIMIT + 1))
        assert caught.value.field_violations[0].field == "items"
        task = await drawing(client)
        with pytest.raises(Overloaded) as shed:
            await collect(client, GenerateItem(PROMPT, n=LIMIT))
        assert shed.value.retry_after
        assert len(await task) == 4


@both
async def test_leaving_frees_the_room(kind: str) -> None:
    async with sampler(kind, slow=True) as client:
        for _ in range(3):
            (await drawing(client)).cancel()
            async with asyncio.timeout(10):
                while (await client.get_policy()).running:
                    await asyncio.sleep(0.005)
        assert len(await collect(client, GenerateItem(PROMPT, n=LIMIT))) == LIMIT


@both
async def test_one_update_at_a_time(kind: str) -> None:
    async with sampler(kind) as client:
        stub = policy_pb2_grpc.PolicyServiceStub(await client._connection.channel())
        first = stub.UpdateWeights()
        await first.write(begin(1))
        for _ in range(20):  # what is asked on the same connection is answered after it
            await client.get_policy()
        with pytest.raises(Aborted):
            await client.update_weights(2, DATA, specs=SPECS)
        first.cancel()
        updated = None
        while updated is None:
            with contextlib.suppress(Aborted):  # the server has not heard of the end
                updated = await client.update_weights(2, DATA, specs=SPECS)
        assert updated.version == 2


# Streams of updates that nobody should send: both must say the same, and change nothing.


class Pair:
    """Both samplers, on a loop of their own, so that Hypothesis can use them again and again."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.clients = [self._run(self._start(kind)) for kind in ("fake", "real")]

    def _run(self, work: Any) -> Any:
        return self._runner.run(work)

    async def _start(self, kind: str) -> AsyncPolicyClient:
        return await self._stack.enter_async_context(sampler(kind))

    def send(self, requests: Sequence[policy_pb2.UpdateWeightsRequest]) -> list[Any]:
        """What each answers, and what it serves then."""
        return [self._run(self._send(client, requests)) for client in self.clients]

    async def _send(self, client: AsyncPolicyClient, requests: Sequence[Any]) -> Any:
        stub = policy_pb2_grpc.PolicyServiceStub(await client._connection.channel())
        try:
            answer: Any = (await reply_of(stub.UpdateWeights(iter(requests)))).version
        except grpc.aio.AioRpcError as error:
            answer = _told(from_rpc_error(error))
        policy = await client.get_policy()
        return answer, policy.weight_version, policy.weight_sha256

    def close(self) -> None:
        self._run(self._stack.aclose())
        self._runner.close()


def _told(error: GuerdonError) -> tuple[str, ...]:
    fields = error.field_violations if isinstance(error, InvalidArgument) else ()
    return (type(error).__name__, *(violation.field for violation in fields))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


WHOLE = [chunk(0, 0, DATA[0]), chunk(1, 0, DATA[1])]
NO_SOURCE = policy_pb2.UpdateWeightsRequest(begin=policy_pb2.BeginUpdate(version=1))
TENSORS = begin(1).begin.tensors
WRONG = {
    "nothing": [],
    "no step": [policy_pb2.UpdateWeightsRequest()],
    "a chunk first": WHOLE,
    "a commit first": [commit()],
    "only a begin": [begin(1)],
    "no commit": [begin(1), *WHOLE],
    "no bytes": [begin(1), commit(b"")],
    "bytes are missing": [begin(1), WHOLE[0], chunk(1, 0, DATA[1][:4]), commit()],
    "a hole": [begin(1), chunk(0, 4, DATA[0][4:]), commit()],
    "too many bytes": [begin(1), chunk(0, 0, DATA[0] + b"x"), commit()],
    "a tensor too many": [begin(1), *WHOLE, chunk(2, 0, b"x"), commit()],
    "out of order": [begin(1), WHOLE[1], WHOLE[0], commit()],
    "another checksum": [begin(1), *WHOLE, commit(b"else")],
    "a short checksum": [begin(1), *WHOLE, commit(sha256=b"short")],
    "two begins": [begin(1), begin(1), *WHOLE, commit()],
    "version 0": [begin(0), *WHOLE, commit()],
    "version 0, anew": [begin(0, reset=True), *WHOLE, commit()],
    "no source": [NO_SOURCE, commit()],
    "no tensors": [begin(1, tensors=[]), commit()],
    "a tensor twice": [begin(1, tensors=[*TENSORS, TENSORS[0]]), *WHOLE, commit()],
    "an unknown dtype": [
        begin(1, tensors=[policy_pb2.TensorSpec(name="a.weight", dtype="int8", shape=[4, 2])]),
        commit(),
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_update_is_refused_alike_and_changes_nothing(pair: Pair, name: str) -> None:
    before = pair.send([])[0][1:]
    fake, real = pair.send(WRONG[name])
    assert fake == real
    assert real[0][0] in ("InvalidArgument", "FailedPrecondition")
    assert real[1:] == before


messages = st.one_of(
    st.builds(begin, st.integers(0, 9), reset=st.booleans()),
    st.builds(
        chunk,
        st.integers(0, 2),
        st.sampled_from([0, 4, 6, 32]),
        st.sampled_from([*DATA, DATA[0][:4], DATA[0][4:], b""]),
    ),
    st.builds(commit, st.sampled_from([WEIGHTS, b"else"])),
)
streams = st.one_of(
    st.lists(messages, max_size=6),
    st.builds(
        lambda version, reset: list(update(version, reset=reset)), st.integers(0, 9), st.booleans()
    ),
    st.builds(
        lambda version, extra, place: [*(u := list(update(version)))[:place], extra, *u[place:]],
        st.integers(1, 99),
        messages,
        st.integers(0, 5),
    ),
)


@given(st.lists(streams, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_stream_of_updates_is_answered_alike(pair: Pair, sent: list[Any]) -> None:
    for requests in sent:
        fake, real = pair.send(requests)
        assert fake == real
