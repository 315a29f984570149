"""A real reward server behind the gateway, the command itself, and what a gateway loads."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
from tests.service.conftest import start_server
from tests.service.fake import expected_score, revision_of, words
from tests.support.formula_engine import length_of
from tests.support.gateway import gateway_process
from tests.support.sampler_service import start_sampler

from guerdon.client import FormattedText, ScoringInfo, StepScore
from guerdon.client import Score as ClientScore
from guerdon.client.testing import FakeRewardServer
from guerdon.gateway.types import PolicyRequest, Sampling, Score, Unscored
from guerdon.gateway.upstream.reward_replies import ranking_score
from guerdon.gateway.upstream.rewards import RewardScorer
from guerdon.together import together

from .support import (
    QUESTION,
    gateway_before,
    openai_client,
    reward_of,
    running_gateway,
    start_gateway,
)


async def test_scores_are_those_of_a_real_reward_server() -> None:
    async with start_server() as rewards, start_sampler() as sampler:
        before = gateway_before(sampler, f"127.0.0.1:{rewards.ports.port}/m")
        async with before as gateway, openai_client(gateway.http) as client:
            reply: Any = await client.chat.completions.create(
                model="policy:best-of-4", messages=QUESTION, n=4
            )
            revision = revision_of("first")
            for choice in reply.choices:
                [score] = await scores_alone(rewards, choice.message.content)
                assert choice.guerdon["score"] == score
                assert choice.guerdon["revision"] == revision
            values = [choice.guerdon["score"] for choice in reply.choices]
            assert values == sorted(values, reverse=True)
            assert rewards.behaviour.sequences == 4 + 4

            for guerdon in (
                {"strategy": "adaptive", "min_gain": 0.0},
                {"strategy": "rejection", "chunk": 2, "keep": 1.0},
                {"strategy": "cascade", "small_model": "m", "margin": 1e9},
            ):  # these score in several rounds, and name the revision of the first from then on
                reply = await client.chat.completions.create(
                    model="policy:best-of-8", messages=QUESTION, extra_body={"guerdon": guerdon}
                )
                assert [each["revision"] for each in reply.guerdon["scores"]] == [revision] * 8

            rewards.behaviour.nonfinite = True
            refused = await gateway.http.post(
                "/v1/chat/completions", json={"model": "policy", "messages": QUESTION}
            )
            assert refused.status_code == 503
            assert "none of 8 candidates has a score" in refused.json()["error"]["message"]


async def test_answers_that_end_together_share_a_request_and_one_at_fault_costs_no_other() -> None:
    def score(_prompt: Any, response: str) -> float:
        return {"a": 1.0, "b": 2.0}[response]  # the fake refuses all of a request for "c"

    request = PolicyRequest(prompt=FormattedText("p"), sampling=Sampling(max_tokens=1))
    async with FakeRewardServer(score, models=("rm",)) as rewards:
        scorer = RewardScorer({"rm": rewards.target}, seconds=60, token=None, tls=None)

        async def scores(*texts: str) -> list[Score | Unscored]:
            deadline = time.monotonic() + 60
            return await together([scorer.score("rm", request, each, deadline) for each in texts])

        a, b = Score(1.0, "rm", "rev-1"), Score(2.0, "rm", "rev-1")
        assert await scores("a", "b", "a") == [a, b, a]
        assert len(rewards.calls) == 1
        first, refused, last = await scores("a", "c", "b")
        assert (first, last) == (a, b)
        assert isinstance(refused, Unscored)
        await scorer.close()


@pytest.mark.parametrize("steps", range(1, 5))
async def test_a_caller_that_leaves_while_scoring_begins_takes_no_later_score_along(
    steps: int,
) -> None:
    request = PolicyRequest(prompt=FormattedText("p"), sampling=Sampling(max_tokens=1))
    async with FakeRewardServer(lambda _prompt, _text: 1.0, models=("rm",)) as rewards:
        scorer = RewardScorer({"rm": rewards.target}, seconds=60, token=None, tls=None)

        def score() -> asyncio.Task[Score | Unscored]:
            deadline = time.monotonic() + 60
            return asyncio.ensure_future(scorer.score("rm", request, "a", deadline))

        leaving = score()
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait({leaving})
        later = score()
        await asyncio.wait({later})
        assert leaving.cancelled()
        assert not later.cancelled()
        assert later.result() == Score(1.0, "rm", "rev-1")
        await scorer.close()


async def test_the_samplers_own_openai_api_is_an_endpoint_too() -> None:
    """Each request draws one candidate, where gRPC draws all in one."""
    async with start_gateway() as first:
        settings: dict[str, Any] = {
            "endpoint": f"{first.sampler.http.base_url}/v1",
            "endpoint_model": "formula",
            "reward": [f"{first.rewards.target}/rm"],
        }
        async with running_gateway(settings) as second, openai_client(second.http) as client:
            model = "policy:best-of-3"
            reply: Any = await client.chat.completions.create(
                model=model, messages=QUESTION, n=3, seed=1
            )
            words = {len(choice.message.content.split()) for choice in reply.choices}
            assert words == {length_of([4], 0) - 1}  # the first of each request
            assert {choice.guerdon["score"] for choice in reply.choices} == {
                reward_of(choice.message.content) for choice in reply.choices
            }
            listed = (await second.http.get("/v1/models")).json()
            assert "rejection" not in listed["guerdon"]["strategies"]
            tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
            passed: Any = await client.chat.completions.create(
                model=model, messages=QUESTION, tools=[tool]
            )
            assert passed.guerdon["ranked"] is False
            assert passed.choices[0].message.content


async def scores_alone(rewards: Any, text: str) -> list[float]:
    """What the reward server says of one answer by itself."""
    item = {"prompt": QUESTION, "responses": [text]}
    reply = await rewards.http.post("/v1/score", json={"model": "m", "items": [item]})
    return [score["score"] for score in reply.json()["items"][0]["scores"]]


async def test_cards_of_the_reward_models_are_listed() -> None:
    async with start_server() as rewards, start_sampler() as sampler:
        before = gateway_before(sampler, f"127.0.0.1:{rewards.ports.port}/m", "127.0.0.1:1/away")
        async with before as gateway:
            known, away = (await gateway.http.get("/v1/reward_models")).json()["models"]
            [wanted] = (await rewards.http.get("/v1/models")).json()["models"]
            assert known == wanted
            assert set(away) == {"name", "reason"}
            assert away["name"] == "away"
            assert away["reason"].startswith("can't be looked at now: ")


@pytest.mark.parametrize(
    "said",
    [
        {"steps": (StepScore(1.0, 3), StepScore(math.nan, 5))},
        {"attributes": {"helpful": math.inf}},
        {"members": (1.0, -math.inf)},
        {"spread": math.nan},
    ],
)
def test_a_number_beside_a_score_that_is_not_finite_costs_the_score(said: dict[str, Any]) -> None:
    info = ScoringInfo(model="rm", revision="r1")
    found = ranking_score(ClientScore(score=1.0, **said), info)
    assert isinstance(found, Unscored)
    assert found.reason.endswith("which is no finite number")


def test_a_fake_models_score_depends_on_every_word() -> None:
    one, other = words("a b"), words("b a")
    assert expected_score(revision_of("first"), one) != expected_score(revision_of("first"), other)


def test_the_command_serves_until_a_signal() -> None:
    with gateway_process(sampler="127.0.0.1:1", reward=["127.0.0.1:1/rm"]) as gateway:
        listed = httpx.get(f"{gateway.url}/v1/models").json()
        assert [model["id"] for model in listed["data"]][:2] == ["policy", "policy:best-of-4"]
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        asked = {"model": "policy", "messages": QUESTION}
        reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=asked)
        assert reply.status_code == 503
        assert json.loads(reply.text)["error"]["message"].startswith("the sampler is away")
        assert gateway.stop() == 0


def test_a_gateway_loads_no_model_and_no_other_service() -> None:
    code = (
        "import sys, guerdon.gateway.app, guerdon.gateway.cli\n"
        "names = ('torch', 'transformers', 'vllm', 'guerdon.reward', 'guerdon.sampler')\n"
        "found = [name for name in names if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
