"""Updates of the policy's weights that end candidates while they are drawn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from tests.support.formula_engine import HELD_TOKENS, token_of
from tests.support.sampler_service import WEIGHTS

from guerdon.gateway.config import SpendingSettings
from guerdon.gateway.spending import Spending
from guerdon.gateway.strategies.work import INTERRUPTIONS
from guerdon.serving.errors import Interrupted

from .scripted import MAX_TOKENS, ScriptedPolicy, ScriptedRewards, answer, chosen, plan
from .support import QUESTION, numbers_in, reward_of, start_gateway
from .test_counting import BEST_OF, DRAWN, HELD, LENGTHS, LIMIT, SEED, Held
from .test_strategies import check_left

TEXTS = ["a", "b b", "c c c", "d d d d"]
SCORES = {"a": 0.5, "b b": -1.0, "c c c": 2.0, "d d d d": 0.75}
GROWING = ["1 1 1 1 1 1", "5 5 5 5 5 5"]
TELLS: dict[str, Any] = {"tells": True}
"""A policy that tells of each candidate all its tokens but one."""


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    spending = {"caller_tokens": 2 * LIMIT, "caller_seconds": 1e9}
    async with start_gateway(spending=spending, comment_seconds=0.02) as gateway:
        yield Held(gateway)


async def test_what_a_reset_ends_is_drawn_anew_and_counted(held: Held) -> None:
    gateway = held.gateway
    guerdon = {"best_of": BEST_OF, "model": "rm"}
    ended = f"{BEST_OF - len(HELD)} of {BEST_OF} drawn"  # their tokens may be told before
    async with held.asking(guerdon, f"{ended}, 0 scored, {DRAWN} tokens", n=BEST_OF) as lines:
        await gateway.sampler.publish(1, reset=True)
        gateway.engine.behaviour.release.set()
        held.scores.set()
        events = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
    report, usage = events[-1]["guerdon"], events[-1]["usage"]
    texts = {
        each["guerdon"]["candidate"]: events[2 * place]["choices"][0]["delta"]["content"]
        for place, each in enumerate(event["choices"][0] for event in events[1:-1:2])
    }
    assert texts.keys() == set(range(BEST_OF))
    assert sum(WEIGHTS) != 0  # other weights draw other tokens
    prompt = [len(word) for word in QUESTION[0]["content"].split()]
    for index, text in texts.items():
        old = [token_of(0, prompt, index, place, SEED) for place in range(LENGTHS[index] - 1)]
        assert (numbers_in(text) == old) == (index not in HELD)
        assert numbers_in(text)[:1] != old[:1] or index not in HELD  # nothing of it is served
    scores = {each["candidate"]: each["score"] for each in report["scores"]}
    assert scores == {index: reward_of(text) for index, text in texts.items()}
    assert report["interrupted_tokens"] == HELD_TOKENS * len(HELD)
    whole = sum(each["tokens"] for each in report["scores"])
    assert usage["completion_tokens"] == report["tokens"] == whole + report["interrupted_tokens"]
    assert gateway.engine.behaviour.tokens == report["tokens"]
    assert await gateway.metric("drawn_tokens_total") == report["tokens"]
    assert await gateway.metric("unanswered_tokens_total") == 0
    await held.spends(2 * LIMIT - whole)


async def test_what_updates_keep_ending_is_said_with_409() -> None:
    async with start_gateway() as gateway:
        gateway.engine.behaviour.interrupts = True
        with pytest.raises(openai.ConflictError, match="an update that was refused ended"):
            await gateway.chat("policy:best-of-4")
        ended = 'requests_total{code="ABORTED",method="Generate"}'
        assert await gateway.sampler.metric(ended) == INTERRUPTIONS + 1
        assert await gateway.metric("drawn_tokens_total") == 0
        drawn = gateway.engine.behaviour.tokens
        assert 0 < await gateway.metric("unanswered_tokens_total") <= drawn
        gateway.engine.behaviour.interrupts = False
        assert (await gateway.chat("policy:best-of-4")).guerdon["ranked"]


async def test_only_what_was_ended_is_drawn_anew_with_another_seed() -> None:
    policy = ScriptedPolicy(TEXTS, interrupted=[{1, 3}, {3}], **TELLS)
    found = await answer(policy, ScriptedRewards(SCORES), plan("best_of_n", 4, n=4), seed=5)
    assert chosen(found) == [2, 3, 0, 1]
    assert policy.calls == [(0, 4), (1, 2), (3, 1)]
    assert len(set(policy.seeds)) == 3
    assert found.interrupted_tokens == (1 + 3) + 3
    assert found.tokens == 10 + 7


async def test_a_caller_does_not_pay_for_what_was_ended() -> None:
    books = Spending(SpendingSettings(caller_tokens=100, caller_seconds=1e9))
    once = ScriptedPolicy(TEXTS, interrupted=[{3}], **TELLS)
    await answer(once, ScriptedRewards(SCORES), plan("best_of_n", 4), spending=books)
    often = ScriptedPolicy(TEXTS, interrupted=[{3}] * (INTERRUPTIONS + 1), **TELLS)
    with pytest.raises(Interrupted):
        await answer(often, ScriptedRewards(SCORES), plan("best_of_n", 4), spending=books)
    assert len(often.calls) == INTERRUPTIONS + 1
    check_left(books, 100 - 10 - 6)


async def test_a_part_goes_on_from_where_it_was() -> None:
    policy = ScriptedPolicy(GROWING, interrupted=[set(), {1}], **TELLS)
    rewards = ScriptedRewards(lambda _, text: float(text[0]))
    found = await answer(policy, rewards, plan("rejection", 2, chunk=3, keep=1.0))
    assert found.choices[0].draft.text == GROWING[1]
    assert found.interrupted_tokens == 1
    assert found.tokens == 6 + 6 + 1


@pytest.mark.parametrize(("budget", "kept"), [(49, True), (48, False)])
async def test_the_token_budget_holds(budget: int, *, kept: bool) -> None:
    """Three of four take 10 tokens each, 9 of the fourth are lost, and anew it may take 10."""
    policy = ScriptedPolicy(["w " * MAX_TOKENS] * 4, interrupted=[{3}], **TELLS)
    given = plan("adaptive", 4, token_budget=budget, min_gain=0.0)
    rewards = ScriptedRewards(lambda _, text: 1.0)
    if kept:
        assert (await answer(policy, rewards, given)).tokens == budget
    else:
        with pytest.raises(Interrupted):
            await answer(policy, rewards, given)
