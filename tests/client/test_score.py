"""Scoring over real sockets: batching, order, revisions, bad answers."""

# ruff: noqa: SIM117 - server and client are nested as they live
from __future__ import annotations

import zlib
from typing import Any

import grpc
import pytest

from guerdon.client import (
    AsyncRewardClient,
    FormattedText,
    Internal,
    InvalidArgument,
    Item,
    Limits,
    MixedRevisions,
    NotFound,
    Retry,
    TokenIds,
    Unauthenticated,
)
from guerdon.client.testing import FakeRewardServer
from guerdon.v1 import reward_pb2, reward_pb2_grpc

ONCE = Retry(attempts=1)


def formula(prompt: Any, response: Any) -> float:
    return zlib.crc32(f"{prompt!r}|{response!r}".encode()) / 2**16


def size(call: Any) -> int:
    return int(call.request.ByteSize())


async def test_a_large_call_is_cut_and_comes_back_in_order() -> None:
    items = [
        Item(f"question {i}", [f"answer {i}.{j}" for j in range(i % 5 + 1)]) for i in range(999)
    ]
    limits = Limits(max_bytes=4000, max_responses=50)
    async with FakeRewardServer(formula) as server:
        async with AsyncRewardClient(server.target, limits=limits) as client:
            result = await client.score("fake", items)
        assert len(server.calls) > 50
        assert max(map(size, server.calls)) <= 4000 + 100
        assert max(sum(len(i.responses) for i in c.request.items) for c in server.calls) <= 50
        assert sum(len(c.request.items) for c in server.calls) == len(items), "items stay whole"
    assert result.scores == [[formula(i.prompt, r) for r in i.responses] for i in items]
    assert (result.info.model, result.info.revision) == ("fake", "rev-1")


async def test_an_item_too_large_for_one_request_is_cut_between_responses() -> None:
    item = Item("q" * 500, ["r" * n for n in range(1, 301)], id="big")
    limits = Limits(max_bytes=5000, max_responses=64)
    async with FakeRewardServer(formula) as server:
        async with AsyncRewardClient(server.target, limits=limits) as client:
            result = await client.score("fake", [Item("a", ["b"]), item, Item("c", ["d"])])
            ranked = await client.rank("fake", item.prompt, item.responses, top_n=7)
    expected = [formula(item.prompt, r) for r in item.responses]
    assert result.items[1].id == "big"
    assert result.items[1].values == expected
    best = sorted(range(300), key=lambda i: -expected[i])[:7]
    assert [c.index for c in ranked.ranking] == best


async def test_every_form_of_prompt_arrives_as_given() -> None:
    seen: list[Any] = []

    def score(prompt: Any, response: Any) -> float:
        seen.append((prompt, response))
        return 23.0 if response == "ä" else 25.0

    chat = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": ""}]
    items = [
        Item("text", ["ä", ""]),
        Item(chat, ["x"]),
        Item(FormattedText("<s>"), ["y"]),
        Item(TokenIds([1, 2**31]), [TokenIds((7,))]),
    ]
    async with FakeRewardServer(score) as server, AsyncRewardClient(server.target) as client:
        result = await client.score("fake", items)
    assert result.scores[0] == [23.0, 25.0]
    assert seen == [
        ("text", "ä"),
        ("text", ""),
        (chat, "x"),
        (FormattedText("<s>"), "y"),
        (TokenIds([1, 2**31]), TokenIds([7])),
    ]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Item("p", "one string"), "responses"),
        (lambda: Item("p", []), "responses"),
        (lambda: Item("p", [3]), "responses[0]"),  # type: ignore[list-item]
        (lambda: Item([], ["r"]), "prompt"),
        (lambda: Item(3, ["r"]), "prompt"),  # type: ignore[arg-type]
        (lambda: Item([{"role": "user"}], ["r"]), "prompt[0].content"),
        (lambda: Item([{"role": "u", "content": "c", "weight": 1}], ["r"]), "prompt[0].weight"),
        (lambda: TokenIds([1, -1]), "token_ids[1]"),
        (lambda: TokenIds([True]), "token_ids[0]"),
        (lambda: TokenIds([]), "token_ids"),
    ],
)
def test_wrong_items_are_refused_by_field(make: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert [v.field for v in caught.value.field_violations] == [field]
    assert isinstance(caught.value, ValueError)


async def test_wrong_calls_never_reach_the_server() -> None:
    good = [Item("p", ["r"])]
    async with FakeRewardServer() as server, AsyncRewardClient(server.target) as client:
        calls: list[tuple[Any, str]] = [
            (client.score("", good), "model"),
            (client.score("fake", []), "items"),
            (client.score("fake", [Item("p", ["r"]), "x"]), "items[1]"),  # type: ignore[list-item]
            (client.score("fake", [Item("p", ["ok", "\ud800"])]), "items[0].responses[1]"),
            (client.score("fake", good, priority="high"), "priority"),  # type: ignore[arg-type]
            (client.score("fake", good, timeout=-1), "timeout"),
            (client.rank("fake", "p", ["r"], top_n=0), "top_n"),
        ]
        for call, field in calls:
            with pytest.raises(InvalidArgument) as caught:
                await call
            assert caught.value.field_violations[0].field == field
        assert server.calls == []


async def test_a_promotion_in_the_middle_mixes_nothing() -> None:
    """The parts that came late are asked again, pinned to the revision of the majority."""
    async with FakeRewardServer(lambda p, r: 1.0) as server:
        asked = 0

        def first(prompt: Any, response: Any) -> float:
            nonlocal asked
            asked += 1
            if asked == 7:
                server.add_revision("fake", "rev-2", lambda p, r: 2.0)
            return 1.0

        server.add_revision("fake", "rev-1", first)
        limits = Limits(max_responses=1, concurrency=1)
        async with AsyncRewardClient(server.target, limits=limits) as client:
            result = await client.score("fake", [Item("p", ["r"])] * 10)
        assert result.scores == [[1.0]] * 10
        assert result.info.revision == "rev-1"
        assert [c.request.model for c in server.calls] == ["fake"] * 10 + ["fake@rev-1"] * 3


async def test_when_the_majority_is_unloaded_the_other_revision_scores_all() -> None:
    async with FakeRewardServer(lambda p, r: 1.0) as server:
        asked = 0

        def first(prompt: Any, response: Any) -> float:
            nonlocal asked
            asked += 1
            if asked == 7:
                server.add_revision("fake", "rev-2", lambda p, r: 2.0)
                server.remove_revision("fake", "rev-1")
            return 1.0

        server.add_revision("fake", "rev-1", first)
        limits = Limits(max_responses=1, concurrency=1)
        async with AsyncRewardClient(server.target, limits=limits) as client:
            result = await client.score("fake", [Item("p", ["r"])] * 10)
        assert result.scores == [[2.0]] * 10
        assert result.info.revision == "rev-2"


class Scripted(reward_pb2_grpc.RewardServiceServicer):
    """Answers Score with what it is told."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)

    async def Score(self, request: Any, context: Any) -> Any:
        return self.replies.pop(0)


async def scripted(*replies: Any) -> tuple[Any, str]:
    server = grpc.aio.server()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(Scripted(*replies), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def reply(*scores: float, revision: str = "r", id: str = "") -> reward_pb2.ScoreResponse:
    item = reward_pb2.ItemScores(id=id, scores=[reward_pb2.ResponseScore(score=s) for s in scores])
    info = reward_pb2.ScoringInfo(model="m", revision=revision)
    return reward_pb2.ScoreResponse(items=[item], info=info)


@pytest.mark.parametrize(
    "wrong",
    [
        reply(1.0),
        reply(1.0, 2.0, 3.0),
        reply(1.0, float("nan")),
        reply(1.0, float("inf")),
        reply(1.0, 2.0, revision=""),
        reply(1.0, 2.0, id="another"),
        reward_pb2.ScoreResponse(),
    ],
    ids=["few", "many", "nan", "inf", "no revision", "other id", "empty"],
)
async def test_an_answer_that_does_not_fit_is_an_error(wrong: Any) -> None:
    server, target = await scripted(wrong)
    async with AsyncRewardClient(target) as client:
        with pytest.raises(Internal):
            await client.score("m", [Item("p", ["a", "b"])])
    await server.stop(None)


async def test_revisions_that_never_agree_are_an_error() -> None:
    replies = [reply(float(i), revision=f"r{i}") for i in range(8)]
    server, target = await scripted(*replies)
    async with AsyncRewardClient(target, limits=Limits(max_responses=1)) as client:
        with pytest.raises(MixedRevisions, match=r"m@r0, m@r1"):
            await client.score("m", [Item("p", ["a"]), Item("p", ["b"])])
    await server.stop(None)


async def test_models_admin_health_and_tokens() -> None:
    from guerdon.client import AsyncAdminClient

    async with FakeRewardServer(models=["a", "b"], token="t") as server:
        async with AsyncRewardClient(server.target, retry=ONCE) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.list_models()
        async with (
            AsyncRewardClient(server.target, token="t") as client,
            AsyncAdminClient(server.target, token="t") as admin,
        ):
            assert [m.name for m in await client.list_models()] == ["a", "b"]
            await admin.load_model("a", "rev-2")
            await admin.set_alias("best", "a")
            assert (await client.get_model("best")).pinned == "a@rev-1"
            promotion = await admin.promote_model("a", "rev-2")
            assert (promotion.model.revision, promotion.previous_revision) == ("rev-2", "rev-1")
            assert await admin.unload_model("a", "rev-1") == ["rev-1"]
            await admin.delete_alias("best")
            with pytest.raises(NotFound, match="best"):
                await client.get_model("best")
            assert await client.health()
            await server.set_serving(False)
            assert not await client.health("guerdon.v1.RewardService")
            with pytest.raises(NotFound):
                await client.health("no.such.Service")
