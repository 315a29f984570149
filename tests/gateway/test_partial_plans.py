"""The four ways to ask, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from guerdon.gateway.types import Strategy

from .support import Gateway, reward_of, start_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_gateway() -> AsyncIterator[Gateway]:
    presets = {
        "careful": {"best_of": 6, "strategy": "soft"},
        "quick": {"best_of": 6, "strategy": "threshold", "threshold": -1000.0},
    }
    async with start_gateway(presets=presets) as running:
        yield running


@pytest.fixture
def gateway(one_gateway: Gateway) -> Gateway:
    one_gateway.engine.behaviour.drawn = 0
    return one_gateway


WAYS: list[tuple[str, dict[str, Any], int]] = [
    ("policy", {}, 8),
    ("policy", {"n": 9}, 9),
    ("policy:best-of-4", {}, 4),
    ("policy:careful", {}, 6),
    ("policy:best-of-4", {"extra_headers": {"x-guerdon-best-of": "5"}}, 5),
    (
        "policy:careful",
        {"extra_headers": {"x-guerdon-best-of": "5"}, "extra_body": {"best_of": 3}},
        3,
    ),
    (
        "policy:best-of-4",
        {
            "extra_headers": {"x-guerdon-best-of": "5"},
            "extra_body": {"best_of": 3, "guerdon": {"best_of": 2}},
        },
        2,
    ),
]


@pytest.mark.parametrize(("model", "fields", "count"), WAYS)
async def test_the_ways_to_ask_win_in_their_order(
    gateway: Gateway, model: str, fields: dict[str, Any], count: int
) -> None:
    reply = await gateway.chat(model, **fields)
    assert reply.guerdon["candidates"] == count == gateway.engine.behaviour.drawn
    assert reply.model == model


@pytest.mark.parametrize(
    "asked",
    [
        {"strategy": "soft"},
        {"strategy": "soft", "temperature": 2.0},
        {"strategy": "vote", "answer": "line"},
    ],
)
async def test_another_strategy_than_the_presets_leaves_out_the_presets_fields(
    gateway: Gateway, asked: dict[str, Any]
) -> None:
    reply = await gateway.chat("policy:quick", extra_body={"guerdon": asked})
    assert reply.guerdon["strategy"] == asked["strategy"]
    assert reply.guerdon["candidates"] == 6 == len(reply.guerdon["scores"])
    assert reply.guerdon["stopped"] == 0


async def test_choices_come_best_first_with_their_scores(gateway: Gateway) -> None:
    reply = await gateway.chat("policy:best-of-8", n=3)
    scores = [reward_of(choice.message.content or "") for choice in reply.choices]
    assert scores == sorted(scores, reverse=True)
    assert [choice.guerdon["score"] for choice in reply.choices] == scores
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    every = [each["score"] for each in reply.guerdon["scores"]]
    assert sorted(every, reverse=True)[:3] == scores
    assert len(every) == 8
    assert reply.guerdon["gain"] == scores[0] - every[0]


async def test_all_drawn_tokens_are_counted_and_split(gateway: Gateway) -> None:
    reply = await gateway.chat("policy:best-of-8", n=2)
    used = reply.usage
    tokens = [each["tokens"] for each in reply.guerdon["scores"]]
    served = sum(choice.guerdon["tokens"] for choice in reply.choices)
    assert used.completion_tokens == sum(tokens) == reply.guerdon["tokens"]
    assert used.prompt_tokens == 5  # a token for each word
    assert used.total_tokens == 5 + sum(tokens)
    assert used.completion_tokens_details.accepted_prediction_tokens == served
    assert used.completion_tokens_details.rejected_prediction_tokens == sum(tokens) - served


async def test_headers_tell_the_same(gateway: Gateway) -> None:
    reply = await gateway.post({"model": "policy:best-of-4"})
    body = reply.json()
    assert float(reply.headers["x-guerdon-score"]) == body["choices"][0]["guerdon"]["score"]
    assert reply.headers["x-guerdon-candidates"] == "4"
    assert reply.headers["x-guerdon-ranked"] == "true"


async def test_the_models_are_listed_with_numbers_and_presets(gateway: Gateway) -> None:
    listed = [model.id async for model in gateway.openai.models.list()]
    assert (await gateway.openai.models.retrieve("policy:careful")).id == "policy:careful"
    assert listed == [
        "policy",
        "policy:best-of-4",
        "policy:best-of-8",
        "policy:best-of-16",
        "policy:careful",
        "policy:quick",
    ]


async def test_the_list_says_what_may_be_asked(gateway: Gateway) -> None:
    listed = (await gateway.http.get("/v1/models")).json()
    asked = {model["id"]: model["guerdon"] for model in listed["data"]}
    default = {"best_of": 8, "strategy": "best_of_n", "model": "rm"}
    assert asked["policy"] == default
    assert asked["policy:best-of-4"] == {**default, "best_of": 4}
    assert asked["policy:careful"] == {"best_of": 6, "strategy": "soft", "model": "rm"}
    choice = listed["guerdon"]
    assert (choice["max_best_of"], choice["reward_models"]) == (64, ["rm", "small"])
    for strategy, fields in choice["strategies"].items():  # null: to be given, or no limit
        given: dict[str, Any] = {
            "threshold": 1.0,
            "small_model": "small",
            "token_budget": 10**6,
            "seconds": 60.0,
        }
        given["answer"] = "number"  # the candidates' texts are numbers
        filled = {name: given.get(name, value) for name, value in fields.items()}
        body = {"guerdon": {"best_of": 2, "strategy": strategy, **filled}}
        reply = await gateway.post(body)
        assert reply.status_code == 200, reply.text
    assert {*choice["strategies"]} == {strategy.value for strategy in Strategy}
    assert choice["saving"] == ["threshold", "adaptive", "rejection"]


async def test_one_item_is_drawn_so_that_the_prompt_is_computed_once(gateway: Gateway) -> None:
    before = await gateway.sampler.metric("prompt_tokens_total")
    await gateway.chat("policy:best-of-8")
    assert await gateway.sampler.metric("prompt_tokens_total") == before + 5


async def test_a_stream_is_the_same_answer_with_comments_before(gateway: Gateway) -> None:
    whole = await gateway.chat("policy:best-of-4", n=2, seed=7)
    options = {"include_usage": True}
    stream = await gateway.chat(
        "policy:best-of-4", n=2, seed=7, stream=True, stream_options=options
    )
    texts, ends, last = {0: "", 1: ""}, {}, None
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = (choice.finish_reason, choice.guerdon["score"])
        last = chunk
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert ends == {c.index: (c.finish_reason, c.guerdon["score"]) for c in whole.choices}
    assert last is not None
    assert last.usage == whole.usage
    assert last.guerdon["scores"] == whole.guerdon["scores"]
    raw = (await gateway.post({"stream": True})).text
    assert raw.startswith(": ")
    assert raw.endswith("data: [DONE]\n\n")


async def test_a_stream_without_usage_tells_the_scores_at_its_end(gateway: Gateway) -> None:
    chunks = [chunk async for chunk in await gateway.chat("policy:best-of-4", stream=True)]
    assert len(chunks[-1].guerdon["scores"]) == 4
    assert chunks[-1].usage is None


async def test_text_completions_are_ranked_too(gateway: Gateway) -> None:
    reply: Any = await gateway.openai.completions.create(
        model="policy", prompt="The highest mountain is", best_of=4, n=2
    )
    scores = [reward_of(choice.text) for choice in reply.choices]
    assert scores == sorted(scores, reverse=True)
    assert [choice.guerdon["score"] for choice in reply.choices] == scores


@pytest.mark.parametrize(
    "guerdon", [{}, {"strategy": "rejection", "chunk": 2, "keep": 1.0}], ids=["whole", "grown"]
)
async def test_a_stop_text_ends_a_candidate_and_is_no_part_of_it(
    gateway: Gateway, guerdon: dict[str, Any]
) -> None:
    async def texts(**fields: Any) -> dict[int, str]:
        reply = await gateway.chat(
            n=4, seed=1, max_tokens=6, extra_body={"best_of": 4, "guerdon": guerdon}, **fields
        )
        return {each.guerdon["candidate"]: each.message.content for each in reply.choices}

    plain = await texts()
    candidate, words = next((i, t.split()) for i, t in plain.items() if len(t.split()) > 3)
    stop = f"{words[1]} {words[2]}"  # of two tokens, which a chunk of two parts
    stopped = await texts(stop=[stop])
    assert stopped == {**plain, candidate: f"{words[0]} "}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 5, "best_of": 4}, "n: is 5"),
    ({"best_of": 65}, "best_of: is 65"),
    ({"best_of": 0}, "best_of: is 0"),
    ({"best_of": True}, "best_of: must be a whole number"),
    ({"guerdon": {"best_off": 3}}, "did you mean 'guerdon.best_of'"),
    ({"guerdon": {"threshold": 1.0}}, "guerdon.threshold: is read by threshold"),
    ({"guerdon": {"strategy": "threshold"}}, "guerdon.threshold: is required"),
    ({"guerdon": {"strategy": "cascade", "small_model": "tiny"}}, "guerdon.small_model"),
    ({"guerdon": {"model": "other"}}, "guerdon.model: is 'other'"),
    ({"guerdon": {"strategy": "soft", "temperature": 0}}, "guerdon.temperature"),
    ({"guerdon": {"strategy": "rejection", "keep": 2.0}}, "guerdon.keep"),
    ({"guerdon": []}, "guerdon: must be an object"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": [""]}, "stop"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED)
async def test_what_cannot_be_is_refused_by_its_name(
    gateway: Gateway, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.chat(extra_body=fields)
    assert said in str(caught.value)
    assert gateway.engine.behaviour.drawn == 0


@pytest.mark.parametrize("model", ["gpt-4", "policy:best-of-", "policy:best-of-x", "policy:other"])
async def test_another_model_is_not_found(gateway: Gateway, model: str) -> None:
    line = 'requests_total{code="NOT_FOUND",method="http_chat_completions"}'
    before = await gateway.metric(line)
    with pytest.raises(openai.NotFoundError, match="policy:careful"):
        await gateway.chat(model)
    assert await gateway.metric(line) == before + 1


async def test_no_more_candidates_are_listed_than_may_be_asked() -> None:
    async with start_gateway(best_of=2, max_best_of=8) as small:
        listed = [model.id async for model in small.openai.models.list()]
    assert listed == ["policy", "policy:best-of-4", "policy:best-of-8"]
