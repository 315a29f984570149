"""Every strategy, on a policy and rewards that do as they are told."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from guerdon.gateway.spending import Spending, SpendingSettings
from guerdon.gateway.strategies.choosing import expected_gain, softly_first
from guerdon.gateway.types import Plan, RankingFailed, Stopped
from guerdon.serving.access.identity import Caller
from guerdon.serving.calls import Call
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, Overloaded, Unsupported

from .scripted import ScriptedPolicy, ScriptedRewards, answer, chosen, plan

TEXTS = ["a", "b b", "c c c", "d d d d"]
SCORES = {"a": 0.5, "b b": -1.0, "c c c": 2.0, "d d d d": 0.75}


async def test_best_of_n_is_the_order_of_the_scores() -> None:
    found = await answer(ScriptedPolicy(TEXTS), ScriptedRewards(SCORES), plan("best_of_n", 4, n=4))
    assert chosen(found) == [2, 3, 0, 1]
    assert (found.tokens, found.prompt_tokens, found.stopped) == (10, 3, ())
    assert found.gain == 1.5
    assert found.ranked


async def test_scoring_begins_as_each_candidate_ends() -> None:
    rewards = ScriptedRewards(SCORES)
    # Each candidate after the first waits until a score was asked for: else nothing would come.
    policy = ScriptedPolicy(TEXTS, held={1: rewards.heard})
    assert chosen(await answer(policy, rewards, plan("best_of_n", 4))) == [2]


async def test_a_candidate_without_a_score_is_not_ranked_and_comes_last() -> None:
    scores = {text: score for text, score in SCORES.items() if text != "c c c"}
    found = await answer(ScriptedPolicy(TEXTS), ScriptedRewards(scores), plan("best_of_n", 4, n=4))
    assert chosen(found) == [3, 0, 1, 2]
    assert not found.choices[-1].scored
    assert found.tokens == 10


async def test_where_no_candidate_has_a_score_there_is_no_answer() -> None:
    with pytest.raises(RankingFailed, match=r"none of 4 candidates has a score.*too long"):
        await answer(ScriptedPolicy(TEXTS), ScriptedRewards({}), plan("best_of_n", 4))


async def test_scores_of_two_revisions_are_not_compared() -> None:
    rewards = ScriptedRewards(SCORES, revision=lambda text: "r2" if text == "d d d d" else "r1")
    with pytest.raises(RankingFailed, match="another revision of rm"):
        await answer(ScriptedPolicy(TEXTS), rewards, plan("best_of_n", 4))


async def test_the_threshold_stops_the_drawing() -> None:
    policy = ScriptedPolicy(TEXTS, held={3: asyncio.Event()})  # which never comes
    found = await answer(policy, ScriptedRewards(SCORES), plan("threshold", 4, threshold=1.5))
    assert chosen(found) == [2]
    assert (len(found.candidates), found.stopped, policy.closed) == (3, (Stopped(3, None),), 1)
    assert found.tokens == 6


async def test_a_candidate_that_was_stopped_counts_with_the_tokens_that_were_told() -> None:
    policy = ScriptedPolicy(TEXTS, held={3: asyncio.Event()}, tells=True)
    found = await answer(policy, ScriptedRewards(SCORES), plan("threshold", 4, threshold=1.5))
    assert found.stopped == (Stopped(3, 3),)
    assert found.tokens == 6 + 3


async def test_a_part_that_was_stopped_as_it_grew_counts_once() -> None:
    texts = ["1 1 1 1 1 1", "5 5 5 5 5 5"]
    policy = ScriptedPolicy(texts, grown=asyncio.Event(), tells=True)
    rewards = ScriptedRewards(lambda _, text: float(text[0]))
    books = Spending(SpendingSettings(caller_tokens=20, caller_seconds=1e9))
    given = plan("rejection", 2, chunk=2, keep=1.0)
    calling = asyncio.ensure_future(answer(policy, rewards, given, spending=books))
    await policy.growing.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    check_left(books, 20 - 2 * (2 + 1))


async def test_the_threshold_waits_for_as_many_as_are_asked_for() -> None:
    policy = ScriptedPolicy(["c c c", "a", "b b", "d d d d"], held={3: asyncio.Event()})
    given = plan("threshold", 4, threshold=1.5, n=3)
    assert chosen(await answer(policy, ScriptedRewards(SCORES), given)) == [0, 1, 2]


async def test_a_threshold_that_none_reaches_is_best_of_n() -> None:
    given = plan("threshold", 4, threshold=99.0)
    found = await answer(ScriptedPolicy(TEXTS), ScriptedRewards(SCORES), given)
    assert chosen(found) == [2]
    assert len(found.candidates) == 4


MANY = [f"w{i} " * (1 + i % 3) for i in range(32)]


def noisy(_model: str, text: str) -> float:
    return random.Random(text).gauss(0, 1)


async def test_adaptive_n_stops_when_another_candidate_promises_little() -> None:
    policy = ScriptedPolicy(MANY)
    found = await answer(policy, ScriptedRewards(noisy), plan("adaptive", 32, min_gain=0.05))
    scores = [each.value for each in found.candidates]
    assert found.notes["stopped_by"] == "min_gain"
    assert len(scores) == 4 * len(policy.calls) < 32
    assert expected_gain(scores) < 0.05
    assert all(expected_gain(scores[: -4 * k]) >= 0.05 for k in range(1, len(policy.calls)))
    assert found.choices[0].value == max(scores)


async def test_adaptive_n_keeps_its_token_budget_whatever_is_drawn() -> None:
    for budget in (40, 41, 55):
        given = plan("adaptive", 32, token_budget=budget, min_gain=0.0)
        found = await answer(ScriptedPolicy(MANY), ScriptedRewards(noisy), given)
        assert found.notes["stopped_by"] == "token_budget"
        assert budget - 10 < found.tokens <= budget  # one more of 10 could not be begun
    given = plan("adaptive", 32, token_budget=15, n=2)
    with pytest.raises(InvalidRequest, match="token_budget"):
        await answer(ScriptedPolicy(MANY), ScriptedRewards(noisy), given)


async def test_adaptive_n_answers_when_its_time_is_over() -> None:
    policy = ScriptedPolicy(MANY, held={1: asyncio.Event()})  # which never comes
    given = plan("adaptive", 32, seconds=0.1, min_gain=0.0)
    found = await answer(policy, ScriptedRewards(noisy), given)
    assert found.notes["stopped_by"] == "seconds"
    assert len(found.candidates) == 1
    assert [each.index for each in found.stopped] == [1, 2, 3]


async def test_a_weighted_majority_beats_a_single_high_score() -> None:
    texts = [r"\boxed{7}", r"so \boxed{ 7.0 }", r"\boxed{8}", "I don't know"]
    scores = dict(zip(texts, [1.0, 2.0, 2.5, 9.0], strict=True))
    found = await answer(
        ScriptedPolicy(texts), ScriptedRewards(scores), plan("vote", 4, n=4, weight="score")
    )
    assert chosen(found) == [1, 0, 2, 3]
    assert found.notes["votes"] == [{"answer": "7", "weight": 3.0}, {"answer": "8", "weight": 2.5}]
    assert found.notes["without_answer"] == 1


async def test_a_negative_score_is_no_weight() -> None:
    given = plan("vote", 2, weight="score", answer="line")
    with pytest.raises(Unsupported, match="negative"):
        await answer(ScriptedPolicy(TEXTS), ScriptedRewards(SCORES), given)


async def test_a_seed_makes_the_soft_choice_repeatable() -> None:
    for seed in range(5):
        found = await answer(
            ScriptedPolicy(TEXTS), ScriptedRewards(SCORES), plan("soft", 4, n=4), seed=seed
        )
        scores = [SCORES[text] for text in TEXTS]
        assert chosen(found) == softly_first(scores, 1.0, random.Random(seed))


async def test_rejection_stops_the_weak_and_lets_the_strong_grow() -> None:
    texts = ["1 1 1 1 1 1", "5 5 5 5 5 5", "3 3 3", "9 9 0 0 0 0"]

    def mean(_model: str, text: str) -> float:
        numbers = [int(word) for word in text.split()]
        return sum(numbers) / len(numbers)

    found = await answer(
        ScriptedPolicy(texts), ScriptedRewards(mean), plan("rejection", 4, chunk=2, keep=0.5)
    )
    # After two tokens 1: 5 and 3: 9 are the best half; after four 1: 5 beats 3: 4.5.
    assert chosen(found) == [1]
    tokens = {each.draft.index: each.draft.tokens for each in found.candidates}
    assert tokens == {0: 2, 1: 6, 2: 2, 3: 4}
    assert found.notes == {"rounds": 3, "rejected": 3}
    assert found.stopped == ()


async def test_rejection_keeps_as_many_as_are_asked_for_and_all_that_ended() -> None:
    texts = ["1", "5 5 5 5", "3 3 3 3", "2 2 2 2"]
    scores = ScriptedRewards(lambda _, text: float(text[0]))
    given = plan("rejection", 4, n=3, chunk=2, keep=0.1)
    found = await answer(ScriptedPolicy(texts), scores, given)
    assert chosen(found) == [1, 2, 0]


async def test_a_cascade_asks_the_large_model_for_close_calls_alone() -> None:
    small = {"a": 1.0, "b b": 0.0, "c c c": 1.5, "d d d d": 1.4}
    large = {"a": 30.0, "c c c": 10.0, "d d d d": 20.0}
    rewards = ScriptedRewards(lambda model, text: (small if model == "small" else large)[text])
    given = plan("cascade", 4, n=4, small_model="small", margin=0.5)
    found = await answer(ScriptedPolicy(TEXTS), rewards, given)
    assert chosen(found) == [0, 3, 2, 1]
    asked = [text for model, text in rewards.asked if model.startswith("rm")]
    assert sorted(asked) == ["a", "c c c", "d d d d"]
    assert found.notes == {"close_calls": 3, "overruled": True}
    large["c c c"] = 40.0
    found = await answer(ScriptedPolicy(TEXTS), rewards, given)
    assert chosen(found) == [2, 0, 3, 1]
    assert found.notes == {"close_calls": 3, "overruled": False}


async def test_a_cascades_large_model_overrules_nothing_by_a_tie_or_without_a_score() -> None:
    small = {"a": 1.4, "b b": 0.0, "c c c": 1.5, "d d d d": 1.3}
    given = plan("cascade", 4, n=4, small_model="small", margin=0.5)
    for large, order in (
        (dict.fromkeys(TEXTS, 7.0), [2, 0, 3, 1]),
        ({"a": 7.0, "d d d d": 6.0}, [0, 3, 1, 2]),  # it refuses the small one's best
    ):
        both = {"small": small, "rm": large}
        rewards = ScriptedRewards(lambda model, text: both[model].get(text))  # noqa: B023
        found = await answer(ScriptedPolicy(TEXTS), rewards, given)
        assert chosen(found) == order
        assert found.notes == {"close_calls": 3, "overruled": False}


async def test_a_cascade_lets_the_small_model_decide_a_clear_case() -> None:
    rewards = ScriptedRewards(lambda model, text: SCORES[text])
    given = plan("cascade", 4, small_model="small", margin=1.0)
    found = await answer(ScriptedPolicy(TEXTS), rewards, given)
    assert chosen(found) == [2]
    assert {model.partition("@")[0] for model, _ in rewards.asked} == {"small"}


EVERY = [
    plan("best_of_n", 4),
    plan("threshold", 4, threshold=1.0),
    plan("adaptive", 4),
    plan("vote", 4),
    plan("soft", 4),
    plan("rejection", 4, chunk=2),
    plan("cascade", 4, small_model="small"),
]


@pytest.mark.parametrize("given", EVERY, ids=lambda given: given.strategy.value)
async def test_where_rewards_are_away_there_is_no_ranking(given: Plan) -> None:
    rewards = ScriptedRewards(SCORES, away=True)
    with pytest.raises(RankingFailed, match="away"):
        await answer(ScriptedPolicy(TEXTS), rewards, given)


@pytest.mark.parametrize("given", EVERY, ids=lambda given: given.strategy.value)
async def test_the_declared_answer_is_candidate_0_whole_and_not_whoever_ends_first(
    given: Plan,
) -> None:
    rewards = ScriptedRewards(SCORES, away=True)
    policy = ScriptedPolicy(["a a a a", "b", "c", "d"], backwards=True)
    found = await answer(policy, rewards, given, unranked="first")
    assert chosen(found) == [0]
    assert found.choices[0].draft.text == "a a a a"
    assert not found.ranked
    assert "away" in found.reason
    assert found.gain is None


async def test_enough_scores_do_not_end_the_wait_for_candidate_0_once_there_is_no_ranking() -> None:
    last_scored, first_may_come = asyncio.Event(), asyncio.Event()

    def score(_model: str, text: str) -> float:
        if text == "c c c":
            last_scored.set()
        return SCORES[text]

    async def release() -> None:
        await last_scored.wait()
        for _ in range(100):  # turns of the loop, in which a call that is over would end
            await asyncio.sleep(0)
        first_may_come.set()

    policy = ScriptedPolicy(["b b", "c c c", "d d d d", "a"], {0: first_may_come}, backwards=True)
    rewards = ScriptedRewards(score, revision=lambda text: "r2" if text == "d d d d" else "r1")
    given = plan("threshold", 4, threshold=1.5, n=2)
    releasing = asyncio.ensure_future(release())
    found = await answer(policy, rewards, given, unranked="first")
    await releasing
    assert chosen(found) == [0, 1]
    assert not found.ranked


async def test_a_deadline_ends_what_is_drawn() -> None:
    policy = ScriptedPolicy(TEXTS, held={1: asyncio.Event()})
    with pytest.raises(DeadlinePassed, match="no answer within"):
        await answer(policy, ScriptedRewards(SCORES), plan("best_of_n", 4), max_seconds=0.1)
    assert policy.closed == len(policy.calls)


async def test_what_a_call_did_not_spend_is_given_back() -> None:
    books = Spending(SpendingSettings(caller_tokens=50, caller_seconds=1e9))
    how = {"spending": books}
    policy, rewards = ScriptedPolicy(TEXTS), ScriptedRewards(SCORES)
    await answer(policy, rewards, plan("best_of_n", 4), **how)
    await answer(policy, rewards, plan("best_of_n", 4), **how)
    with pytest.raises(Overloaded) as caught:  # 20 of 50 are spent, and 40 may be
        await answer(policy, rewards, plan("best_of_n", 4), **how)
    assert caught.value.retry_after == pytest.approx(10 / 50 * 1e9, rel=1e-3)
    with pytest.raises(InvalidRequest, match="times best_of is 60 tokens"):
        await answer(policy, rewards, plan("best_of_n", 6), **how)
    stopped = ScriptedPolicy(TEXTS, held={3: asyncio.Event()})
    given = plan("threshold", 3, threshold=1.5)
    await answer(stopped, rewards, given, **how)


async def test_tokens_that_were_under_way_when_a_call_ended_are_spent() -> None:
    books = Spending(SpendingSettings(caller_tokens=40, caller_seconds=1e9))
    policy = ScriptedPolicy(["1 1 1 1 1 1"] * 4, growing=asyncio.Event(), grown=asyncio.Event())
    given = plan("rejection", 4, chunk=4, keep=0.5)
    rewards = ScriptedRewards(lambda _, text: 1.0)
    calling = asyncio.ensure_future(answer(policy, rewards, given, spending=books))
    await policy.growing.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    check_left(books, 40 - 24)  # four have 4 tokens, and two may have had 4 more


def check_left(books: Spending, tokens: int) -> None:
    """Check that the caller of `answer` has just so many tokens left, and take them."""
    caller = Call("http_completions", None).caller
    with pytest.raises(Overloaded):
        books.take(caller, tokens + 1, now=time.monotonic())
    books.take(caller, tokens, now=time.monotonic())


def test_tokens_come_back_evenly_and_each_caller_has_its_own() -> None:
    books = Spending(
        SpendingSettings(caller_tokens=100, caller_seconds=10.0, callers={"bulk": 10, "free": 0})
    )
    one, two = Caller(name="a", key="a"), Caller(name="b", key="b")
    books.take(one, 100, now=0.0)
    books.take(two, 100, now=0.0)
    with pytest.raises(Overloaded):
        books.take(one, 51, now=5.0)
    books.take(one, 50, now=5.0)
    books.give_back(one, 20, now=5.0)
    books.take(one, 20, now=5.0)
    with pytest.raises(InvalidRequest, match="'bulk' may have 10"):
        books.take(Caller(name="bulk", key="bulk"), 11, now=0.0)
    books.take(Caller(name="free", key="free"), 10**9, now=0.0)
