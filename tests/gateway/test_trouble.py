"""Services that are away, callers who leave, deadlines and limits, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from tests.support.in_process import until
from tests.support.ports import free_port

from .support import (
    QUESTION,
    Gateway,
    numbers_in,
    openai_client,
    reward_of,
    running_gateway,
    start_gateway,
)


async def test_where_rewards_are_away_the_call_is_refused_and_nothing_is_answered() -> None:
    async with start_gateway() as gateway:
        await gateway.rewards.stop()
        with pytest.raises(
            openai.InternalServerError, match="the rewards of rm are away"
        ) as caught:
            await gateway.chat()
        assert caught.value.status_code == 503
        raw = await gateway.post({})
        assert raw.json().keys() == {"error"}
        assert raw.json()["error"]["type"] == "ServiceUnavailableError"
        streamed = await gateway.post({"stream": True})
        events = [line for line in streamed.text.splitlines() if line.startswith("data:")]
        assert all('"error"' in line for line in events)
        with pytest.raises(openai.APIError, match="the rewards of rm are away"):
            async for _ in await gateway.chat(stream=True):
                pass
        assert await gateway.metric("unranked_refused_total") == 4
        await gateway.rewards.start()
        while (await gateway.post({})).status_code != 200:  # noqa: ASYNC110 - gRPC connects anew
            await asyncio.sleep(0.05)


async def test_the_declared_answer_without_rewards_is_candidate_0_and_says_so() -> None:
    async with start_gateway(unranked="first") as gateway:
        ranked = await gateway.chat(seed=3)
        await gateway.rewards.stop()
        reply = await gateway.post({"seed": 3})
        body = reply.json()
        assert body["guerdon"]["ranked"] is False
        assert "away" in body["guerdon"]["reason"]
        assert body["choices"][0]["guerdon"]["candidate"] == 0
        assert body["choices"][0]["guerdon"]["score"] is None
        assert reply.headers["x-guerdon-ranked"] == "false"
        assert "x-guerdon-score" not in reply.headers
        first = next(each for each in ranked.guerdon["scores"] if each["candidate"] == 0)
        text = body["choices"][0]["message"]["content"]
        assert reward_of(text) == first["score"]
        assert await gateway.metric('answers_total{ranked="no",strategy="best_of_n"}') == 1
        assert await gateway.metric('answers_total{ranked="yes",strategy="best_of_n"}') == 1


async def test_an_answer_that_has_no_score_is_not_ranked_and_never_0() -> None:
    def score(_prompt: Any, response: str) -> float:
        if len(numbers_in(response)) == 4:
            raise ValueError  # the fake refuses the item then
        return reward_of(response) - 100

    async with start_gateway(score) as gateway:
        reply = await gateway.chat("policy:best-of-5", n=5)
        assert [choice.guerdon["ranked"] for choice in reply.choices] == [True] * 4 + [False]
        last = reply.choices[-1]
        assert len(numbers_in(last.message.content)) == 4
        assert last.guerdon["score"] is None
        assert "rm gives no score" in last.guerdon["reason"]
        assert await gateway.metric('candidates_total{outcome="unscored"}') == 1


@pytest.mark.parametrize("unranked", ["refuse", "first"])
async def test_a_model_that_has_no_score_for_one_answer_is_the_callers_error(unranked: str) -> None:
    said = "model 'rm' compares answers with each other and has no score for one"
    async with start_gateway(unranked=unranked) as gateway:
        gateway.rewards.fail(grpc.StatusCode.FAILED_PRECONDITION, said, times=8, method="Score")
        with pytest.raises(openai.BadRequestError, match=f"rm can't rank these answers: {said}"):
            await gateway.chat("policy:best-of-8")


async def test_a_sampler_that_is_away_or_dies_is_said() -> None:
    async with start_gateway() as gateway:
        gateway.engine.behaviour.gate.clear()
        calling = asyncio.ensure_future(gateway.post({}))
        await until(lambda: gateway.engine.running == 8)
        gateway.engine.die("its process was killed")
        gateway.engine.behaviour.gate.set()
        reply = await calling
        assert reply.status_code == 503
        assert "the sampler is away" in reply.json()["error"]["message"]
        settings = {
            "sampler": f"127.0.0.1:{free_port()}",
            "reward": [f"{gateway.rewards.target}/rm"],
        }
        async with running_gateway(settings) as alone, openai_client(alone.http) as client:
            with pytest.raises(openai.InternalServerError, match="the sampler is away") as caught:
                await client.chat.completions.create(model="policy", messages=QUESTION)
            assert caught.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_ends_drawing_and_scoring(stream: bool) -> None:
    async with start_gateway() as gateway:
        behaviour = gateway.engine.behaviour

        async def call() -> None:
            reply = await gateway.chat(stream=stream)
            async for _ in reply if stream else ():
                pass

        behaviour.gate.clear()
        calling = asyncio.ensure_future(call())
        await until(lambda: gateway.engine.running == 8)
        calling.cancel()
        await until(lambda: behaviour.aborted == 8)
        await asyncio.gather(calling, return_exceptions=True)
        behaviour.gate.set()

        gateway.rewards.latency = 3600.0
        calling = asyncio.ensure_future(call())
        await until(lambda: len(asked_for_scores(gateway)) == 8)
        calling.cancel()
        await until(lambda: gateway.rewards.cancelled == len(gateway.rewards.calls))
        await asyncio.gather(calling, return_exceptions=True)
        method = 'requests_in_flight{method="http_chat_completions"}'
        while await gateway.metric(method):  # noqa: ASYNC110 - it asks the server
            await asyncio.sleep(0.01)


async def test_a_deadline_reaches_both_services() -> None:
    async with start_gateway() as gateway:
        await gateway.chat(extra_body={"guerdon": {"timeout": 20}})
        before = len(gateway.rewards.calls)
        left = [call.time_remaining for call in gateway.rewards.calls]
        assert all(each is not None and each <= 20 for each in left)
        gateway.engine.behaviour.gate.clear()
        with pytest.raises(openai.InternalServerError, match=r"deadline|no answer") as caught:
            await gateway.chat(extra_body={"guerdon": {"timeout": 0.2}})
        assert caught.value.status_code == 504
        await until(lambda: gateway.engine.running == 0)
        gateway.engine.behaviour.gate.set()
        gateway.rewards.latency = 3600.0
        with pytest.raises(openai.InternalServerError, match=r"deadline|no answer|away"):
            await gateway.chat(extra_body={"guerdon": {"timeout": 0.5}})
        await until(lambda: gateway.rewards.cancelled == len(gateway.rewards.calls) - before)


async def test_a_stream_is_never_silent_for_long() -> None:
    async with start_gateway(comment_seconds=0.02) as gateway:
        gateway.engine.behaviour.gate.clear()
        body = {"model": "policy", "messages": QUESTION, "stream": True}
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            heard = [line async for line in take(lines, 6) if line]
            assert heard == [": drawing"] * 3
            gateway.engine.behaviour.gate.set()
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"


def asked_for_scores(gateway: Gateway) -> list[str]:
    """The answers that the reward server was asked to score, in the order in which they came."""
    return [
        response.text
        for call in gateway.rewards.calls
        for item in call.request.items
        for response in item.responses
    ]


async def take(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield await anext(lines)


async def test_rewards_that_never_answer_count_as_away_before_the_deadline() -> None:
    async with start_gateway(unranked="first", reward_seconds=0.2) as gateway:
        gateway.rewards.latency = 3600.0
        assert not (await gateway.chat()).guerdon["ranked"]


async def test_each_caller_may_spend_its_tokens(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    lines = [f'[callers.{who}]\ntoken = "{who}-key"\nroles = ["sample"]' for who in ("a", "b")]
    tokens.write_text("\n".join(lines))
    spending = {"caller_tokens": 100, "caller_seconds": 1e6, "callers": {"b": 0}}
    async with start_gateway(tokens=tokens, spending=spending) as gateway:
        one = gateway.openai.with_options(api_key="a-key")
        two = gateway.openai.with_options(api_key="b-key")

        async def ask(client: openai.AsyncOpenAI, most: int) -> Any:
            return await client.chat.completions.create(
                model="policy:best-of-4", messages=QUESTION, max_tokens=most
            )

        with pytest.raises(openai.BadRequestError, match="max_tokens: times best_of is 400"):
            await ask(one, 100)
        spent = (await ask(one, 25)).guerdon["tokens"]
        assert spent == (await ask(two, 25)).guerdon["tokens"] < 100
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(one, 25)
        assert int(caught.value.response.headers["retry-after"]) > 1000
        await ask(one, (100 - spent) // 4)
        await ask(two, 100)
        with pytest.raises(openai.AuthenticationError):
            await ask(gateway.openai, 1)
        assert await gateway.metric('spending_refused_total{caller="a"}') == 2


async def test_what_is_measured() -> None:
    async with start_gateway() as gateway:
        reply = await gateway.chat("policy:best-of-4", n=2)
        served = reply.usage.completion_tokens_details.accepted_prediction_tokens
        assert await gateway.metric('candidates_total{outcome="scored"}') == 4
        assert await gateway.metric("drawn_tokens_total") == reply.usage.completion_tokens
        assert await gateway.metric("served_tokens_total") == served
        assert await gateway.metric('reward_gain_sum{strategy="best_of_n"}') == pytest.approx(
            reply.guerdon["gain"]
        )
        assert await gateway.metric("answer_seconds_count") == 1
        ratio = reply.usage.completion_tokens / served
        assert await gateway.metric("tokens_per_served_token_sum") == pytest.approx(ratio)
        name = 'requests_total{code="OK",method="http_chat_completions"}'
        assert await gateway.metric(name) == 1
