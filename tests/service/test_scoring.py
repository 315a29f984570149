"""Score, Rank, ListModels and GetModel over a socket, against scores worked out by hand."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest
from tests.support.statuses import details

from guerdon.v1 import reward_pb2

from .conftest import Harness, start_server
from .fake import expected_score, revision_of, words
from .messages import field_at_fault, item, prompt, response, score_request

REVISION = revision_of("first")


def expected(asked: str, answer: str, revision: str = REVISION) -> float:
    return expected_score(revision, words(asked) + words(answer))


async def test_scores_come_in_the_order_of_the_request(served: Harness) -> None:
    request = score_request(item("a b", "c", "d e", id="x"), item("f", "g"))
    reply = await served.rewards.Score(request)
    assert [i.id for i in reply.items] == ["x", ""]
    assert [[s.score for s in i.scores] for i in reply.items] == [
        [expected("a b", "c"), expected("a b", "d e")],
        [expected("f", "g")],
    ]
    first = reply.items[0].scores[0]
    assert (first.token_count, first.reused_tokens, first.truncated_tokens) == (3, 2, 0)
    assert not first.HasField("spread")


async def test_the_reply_says_what_made_the_numbers(served: Harness) -> None:
    info = (await served.rewards.Score(score_request())).info
    assert (info.model, info.revision) == ("m", REVISION)
    assert info.activation == reward_pb2.ACTIVATION_NONE
    assert not info.normalized
    assert not info.HasField("mean")
    assert info.compute_mode == reward_pb2.COMPUTE_MODE_PACKED


async def test_the_reply_says_where_the_time_went(served: Harness) -> None:
    served.behaviour.seconds = 0.05
    served.behaviour.encode_seconds = 0.02
    timing = (await served.rewards.Score(score_request())).timing
    seconds = {
        name: getattr(timing, name).ToTimedelta().total_seconds()
        for name in ("queue", "tokenize", "compute", "total")
    }
    assert seconds["compute"] >= 0.05
    assert seconds["tokenize"] >= 0.02
    assert seconds["total"] >= 0.07
    assert seconds["queue"] + seconds["tokenize"] + seconds["compute"] <= seconds["total"] + 1e-3


async def test_normalisation_and_activation() -> None:
    async with start_server(models={"m": "normalised"}) as served:
        revision = revision_of("normalised")
        raw = expected("what is rain", "water", revision)
        z = (raw - 2.0) / 4.0
        reply = await served.rewards.Score(score_request(normalize=True))
        assert reply.items[0].scores[0].score == z
        assert reply.info.normalized
        assert (reply.info.mean, reply.info.std) == (2.0, 4.0)
        reply = await served.rewards.Score(
            score_request(normalize=True, activation=reward_pb2.ACTIVATION_SIGMOID)
        )
        assert reply.items[0].scores[0].score == pytest.approx(1 / (1 + math.exp(-z)))
        assert reply.info.activation == reward_pb2.ACTIVATION_SIGMOID


async def test_normalising_without_statistics_is_refused(served: Harness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.rewards.Score(score_request(normalize=True))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'m'" in (caught.value.details() or "")


async def test_attributes_carry_their_names() -> None:
    async with start_server(models={"m": "attributes"}) as served:
        score = (await served.rewards.Score(score_request())).items[0].scores[0]
        assert [(a.name, a.value) for a in score.attributes] == [
            ("helpful", score.score),
            ("short", 1.0),
        ]


async def test_every_form_of_prompt(served: Harness) -> None:
    ids = [5, 6, 7]
    request = score_request(
        item([("user", "a"), ("assistant", "b"), ("user", "c")], "d"),
        item(ids, [8, 9]),
        reward_pb2.ScoreItem(
            prompt={"formatted_text": "<s> a b"},  # type: ignore[arg-type]
            responses=[response("")],
        ),
    )
    reply = await served.rewards.Score(request)
    assert [i.scores[0].score for i in reply.items] == [
        expected("user a assistant b user c", "d"),
        expected_score(REVISION, [*ids, 8, 9]),
        expected("<s> a b", ""),
    ]


async def test_truncation_only_on_request_and_flagged(served: Harness) -> None:
    long = item(" ".join(["word"] * 600), "answer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.rewards.Score(score_request(item(), long))
    assert field_at_fault(details(caught.value)) == "items[1].prompt"
    reply = await served.rewards.Score(
        score_request(long, truncation=reward_pb2.TRUNCATION_PROMPT_LEFT)
    )
    assert reply.items[0].scores[0].truncated_tokens == 89
    assert (
        await served.metric(f'guerdon_truncations_total{{model="m",revision="{REVISION[:12]}"}}')
        == 1.0
    )


async def test_rank_orders_and_keeps_ties(served: Harness) -> None:
    answers = ["b", "a", "c", "a"]
    request = reward_pb2.RankRequest(
        model="m", prompt=prompt("q"), candidates=[response(a) for a in answers]
    )
    reply = await served.rewards.Rank(request)
    scores = [expected("q", a) for a in answers]
    order = sorted(range(4), key=lambda i: (-scores[i], i))
    assert [c.index for c in reply.ranking] == order
    assert [c.score.score for c in reply.ranking] == [scores[i] for i in order]
    request.top_n = 2
    assert [c.index for c in (await served.rewards.Rank(request)).ranking] == order[:2]
    request.top_n = 99
    assert len((await served.rewards.Rank(request)).ranking) == 4


async def test_many_calls_at_once_get_their_own_answers(served: Harness) -> None:
    async def one(i: int) -> None:
        reply = await served.rewards.Score(score_request(item(f"question {i}", f"answer {i}")))
        assert reply.items[0].scores[0].score == expected(f"question {i}", f"answer {i}")

    await asyncio.gather(*(one(i) for i in range(200)))


async def test_list_and_get_models() -> None:
    async with start_server(
        models={"m": "first", "another": "normalised"}, aliases={"best": "m"}
    ) as served:
        listed = (await served.rewards.ListModels(reward_pb2.ListModelsRequest())).models
        assert [m.name for m in listed] == ["another", "m"]
        assert all(m.current for m in listed)
        for spec in ("m", "best", f"m@{REVISION}", f"best@{REVISION[:8]}"):
            found = (await served.rewards.GetModel(reward_pb2.GetModelRequest(model=spec))).model
            assert (found.name, found.revision, list(found.aliases)) == ("m", REVISION, ["best"])
            assert found.kind == reward_pb2.MODEL_KIND_SEQUENCE
            assert found.max_tokens == 512
        another = (await served.rewards.GetModel(reward_pb2.GetModelRequest(model="another"))).model
        assert (another.mean, another.std) == (2.0, 4.0)
        assert not listed[1].HasField("mean")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("nobody", grpc.StatusCode.NOT_FOUND),
        (f"m@{'0' * 64}", grpc.StatusCode.NOT_FOUND),
        ("m@abc", grpc.StatusCode.INVALID_ARGUMENT),
        ("m@", grpc.StatusCode.INVALID_ARGUMENT),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_models_that_cannot_be_resolved(
    served: Harness, spec: str, code: grpc.StatusCode
) -> None:
    for call, request in (
        (served.rewards.Score, score_request(model=spec)),
        (served.rewards.GetModel, reward_pb2.GetModelRequest(model=spec)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request)
        assert caught.value.code() is code
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            assert field_at_fault(details(caught.value)) == "model"
    await served.still_serves()


async def test_a_near_name_is_suggested(served: Harness) -> None:
    async with start_server(models={"helpful": "first"}) as other:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.rewards.Score(score_request(model="helpfull"))
        assert "did you mean 'helpful'" in (caught.value.details() or "")
