"""Callers share fairly: the order of work, the room in the queue, and what is foreseen."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.scheduling.simulation import CPU, GPU, EngineTimes
from tests.support.dispatch import item_of

from guerdon.reward.fair_shares import MAX_REMEMBERED, Shares
from guerdon.reward.scheduling.admission import Admission, Ticket
from guerdon.reward.scheduling.ledgers import MAX_CALLERS
from guerdon.reward.scheduling.limits import BatchLimits, QueueLimits
from guerdon.reward.scheduling.queues import MAX_SKIPPED
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Unit
from guerdon.reward.types import PriorityClass
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import Overloaded, TooLarge

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
BATCHES = BatchLimits(max_batch_tokens=100, max_batch_sequences=20, batch_share=0.25, patience=10)
QUEUE = QueueLimits(
    max_queued_tokens=1000,
    max_text_bytes=3000,
    batch_fraction=0.5,
    caller_fraction=0.8,
    bytes_per_token=2,
)
GREEDY, MODEST = Caller(name="greedy", key="greedy"), Caller(name="modest", key="modest")


def one(scheduler: Scheduler, caller: Caller, tokens: int, **more: object) -> Unit:
    options = {"priority": ONLINE, "deadline": None, "now": 0.0} | more
    return scheduler.add("a", item_of(0, tokens), caller=caller, **options)  # type: ignore[arg-type]


def served(scheduler: Scheduler, now: float = 0.0) -> list[Unit]:
    batch = scheduler.next_batch(now).batch
    assert batch is not None
    return [part.unit for part in batch.parts]


# The order of work


@pytest.mark.parametrize("priority", list(PriorityClass))
def test_a_modest_caller_is_in_the_next_batch_whatever_waits(priority: PriorityClass) -> None:
    scheduler = Scheduler(BATCHES)
    for _ in range(600):
        one(scheduler, GREEDY, 30, priority=priority, deadline=5.0)
    for _ in range(20):
        served(scheduler)
        modest = one(scheduler, MODEST, 30, priority=priority, deadline=60.0)
        assert modest in served(scheduler)


def test_also_when_others_were_skipped_over_for_their_length() -> None:
    scheduler = Scheduler(BATCHES)
    for _ in range(200):
        one(scheduler, GREEDY, 60)
    served(scheduler)  # many of them have been skipped over now, and go first
    modest = one(scheduler, MODEST, 60)
    assert served(scheduler) == [modest]


@settings(max_examples=40, deadline=None)
@example(seed=2424, keys="a", weights=[5.0, 5.0, 1.0, 0.5, 1.0])
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from(["a", "ab"]),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
)
def test_each_gets_its_share_at_all_times_while_all_wait(
    seed: int, keys: str, weights: list[float]
) -> None:
    scheduler, rng = Scheduler(BATCHES), random.Random(seed)
    callers = [Caller(key=str(i), share=share) for i, share in enumerate(weights)]
    queued = {(caller.key, key): 0 for caller in callers for key in keys}
    had = {caller.key: 0.0 for caller in callers}
    for _ in range(150):
        for caller in callers:
            for key in keys:
                while queued[caller.key, key] < 600:
                    size = rng.randint(1, 100)
                    deadline = rng.choice([None, rng.uniform(1, 100)])
                    scheduler.add(
                        key,
                        item_of(0, size),
                        priority=ONLINE,
                        deadline=deadline,
                        now=0.0,
                        caller=caller,
                    )
                    queued[caller.key, key] += size
        batch = scheduler.next_batch(0.0).batch
        assert batch is not None
        for part in batch.parts:
            caller = part.unit.caller
            had[caller.key] += part.tokens / caller.share
            queued[caller.key, batch.key] -= part.tokens
        # A turn is one unit. Out of turn a caller only fills up a batch, for which so many units
        # of the others were too long.
        ahead = max(callers, key=lambda caller: had[caller.key])
        skipped = MAX_SKIPPED * 100 / (sum(weights) - ahead.share)
        assert had[ahead.key] - min(had.values()) <= 2 * 100 / min(weights) + skipped


def test_of_one_caller_the_earliest_due_goes_first() -> None:
    scheduler = Scheduler(BATCHES)
    late, early = one(scheduler, GREEDY, 60, deadline=9.0), one(scheduler, GREEDY, 60, deadline=3.0)
    assert [served(scheduler), served(scheduler)] == [[early], [late]]


def test_who_was_idle_has_no_claim_and_who_was_alone_no_debt() -> None:
    scheduler = Scheduler(BATCHES)
    for _ in range(50):
        one(scheduler, GREEDY, 100)
        served(scheduler)  # alone, on an idle engine
    for _ in range(10):
        one(scheduler, GREEDY, 100)
        one(scheduler, MODEST, 100)
    order = [served(scheduler)[0].caller.key for _ in range(10)]
    assert order.count("greedy") == 5


def test_those_who_are_gone_are_forgotten() -> None:
    shares = Shares()
    callers = [Caller(key=str(number)) for number in range(3 * MAX_REMEMBERED)]

    def remembered() -> int:
        known = 0
        for caller in callers:
            with suppress(KeyError):
                known += shares.served(caller.key) > 0
        return known

    for caller in callers:
        shares.enter(caller)
        shares.charge(caller, 10)
        shares.forget({"a"})
    assert remembered() <= MAX_REMEMBERED + 1
    shares.forget(())
    assert remembered() == 0


@dataclass
class Beside:
    """What one caller gets beside another that keeps calls in the queue."""

    seconds: list[float]
    """From arrival to answer, of each of its calls."""
    rate: float
    """Its calls in a second."""
    computed: float
    """Tokens that the engine computes in a second."""


def beside(times: EngineTimes, greedy: int, tokens: int, modest: int) -> Beside:
    """A caller makes so many calls at a time, each 50 ms after the reply to the one before."""
    rng, scheduler, now, computed = random.Random(0), Scheduler(BatchLimits()), 1.0, 0
    seconds: list[float] = []
    following = [now] * modest
    for _ in range(greedy):
        one(scheduler, GREEDY, tokens)
    while len(seconds) < 100:
        for arrival in [at for at in following if at <= now]:
            one(scheduler, MODEST, tokens, now=arrival)
            following.remove(arrival)
        batch = scheduler.next_batch(now).batch
        if batch is None:
            now = min(following)
            continue
        took = times.seconds(batch.tokens) * rng.uniform(0.8, 1.2)
        now += took
        scheduler.observe("a", batch.tokens, took)
        for part in batch.parts:
            if part.unit.caller is MODEST:
                seconds.append(now - part.unit.arrival)
                following.append(now + 0.05)
            else:
                one(scheduler, GREEDY, tokens, now=now)
        computed += batch.tokens
    return Beside(seconds, len(seconds) / (now - 1.0), computed / (now - 1.0))


@pytest.mark.parametrize("times", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_light_caller_waits_for_little_beside_a_greedy_one(times: EngineTimes) -> None:
    found, limits = beside(times, 600, 200, 1), BatchLimits()
    # Half a short batch of others and its own, in the mean: it was half a second.
    short = max(limits.shared_batch_seconds, times.seconds(200))
    mean = sum(found.seconds) / len(found.seconds)
    assert mean < short / 2 + max(short / 2, times.alone) + 0.005
    # What the short batches cost of the whole.
    assert found.computed > 0.6 * times.capacity(limits)


def test_a_modest_caller_keeps_its_rate_beside_600_greedy_calls() -> None:
    """On an engine on which it alone gets 32 calls a second, two at a time."""
    times = EngineTimes(overhead=0.002, per_token=0.01 / 530)
    alone, contended = beside(times, 0, 530, 2), beside(times, 600, 530, 2)
    assert alone.rate == pytest.approx(32, abs=2)
    assert contended.rate >= 0.8 * alone.rate


# Room in the queue


def reserve(
    admission: Admission,
    tokens: int,
    caller: Caller = GREEDY,
    priority: PriorityClass = ONLINE,
    deadline: float | None = None,
    now: float = 0.0,
) -> Ticket:
    ticket = admission.reserve(
        model_name="m",
        priority=priority,
        text_bytes=2 * tokens,
        deadline=deadline,
        now=now,
        caller=caller,
    )
    admission.settle(ticket, tokens, now=now)
    return ticket


def fill(admission: Admission, caller: Caller, tokens: int = 10, **more: object) -> int:
    """All that it gets in, in tokens."""
    held = 0
    while True:
        try:
            reserve(admission, tokens, caller, **more)  # type: ignore[arg-type]
        except Overloaded:
            return held
        held += tokens


def test_a_greedy_caller_leaves_room_for_others() -> None:
    admission = Admission(QUEUE, BATCHES)
    assert fill(admission, GREEDY) == 800
    with pytest.raises(Overloaded, match="holds its share"):
        reserve(admission, 10)
    for number in range(5):
        reserve(admission, 10, Caller(key=str(number)))
    assert admission.tokens(ONLINE) == 850


def churn(admission: Admission, callers: list[Caller], turns: int) -> dict[str, int]:
    """What each holds in the mean, when all ask all the time and one token at a time is done."""
    rng, tickets, held = random.Random(0), list[Ticket](), Counter[str]()
    for turn in range(turns):
        if tickets and turn > turns // 4:
            admission.close(tickets.pop(rng.randrange(len(tickets))))
        for caller in rng.sample(callers, len(callers)):
            with suppress(Overloaded):
                tickets.append(reserve(admission, 1, caller))
        if turn >= turns // 2 and turn % 100 == 0:
            held.update(ticket.account.caller.key for ticket in tickets)
    return {key: 200 * total // turns for key, total in held.items()}


def test_room_is_left_however_many_are_greedy() -> None:
    admission = Admission(QUEUE, BATCHES)
    held = churn(admission, [Caller(key=str(number)) for number in range(10)], 4000)
    # Each holds at most 4 times what is free: 41 parts make 1,000.
    assert all(tokens == pytest.approx(4 * 1000 / 41, rel=0.1) for tokens in held.values())
    reserve(admission, 10, MODEST)


def test_shares_weigh_the_room() -> None:
    admission = Admission(QUEUE, BATCHES)
    heavy, light = Caller(key="heavy", share=4.0), Caller(key="light", share=1.0)
    held = churn(admission, [heavy, light], 8_000)
    # Each holds at most 4 times what is free, by its weight: 4 f, f, and f make 1,000.
    assert held == pytest.approx({"heavy": 4000 / 6, "light": 1000 / 6}, rel=0.05)


def test_text_that_waits_to_be_tokenised_has_shares_too() -> None:
    admission = Admission(QUEUE, BATCHES)

    def text(size: int, caller: Caller) -> Ticket:
        return admission.reserve(
            model_name="m",
            priority=ONLINE,
            text_bytes=size,
            deadline=None,
            now=0.0,
            caller=caller,
            most=1,
        )

    text(2000, GREEDY)
    text(400, GREEDY)
    with pytest.raises(Overloaded, match="too much text"):
        text(1, GREEDY)
    text(400, MODEST)
    with pytest.raises(TooLarge, match="max_text_bytes"):
        text(2401, MODEST)


def test_what_one_caller_can_never_hold_is_refused_for_good() -> None:
    admission = Admission(QUEUE, BATCHES)
    for tokens, priority in ((801, ONLINE), (401, BATCH)):
        with pytest.raises(TooLarge, match="max_queued_tokens"):
            reserve(admission, tokens, priority=priority)
        admission.close(reserve(admission, tokens - 1, priority=priority))
    assert admission.tokens(ONLINE) == admission.tokens(BATCH) == 0


def test_a_caller_with_a_limit_of_its_own() -> None:
    admission = Admission(QUEUE, BATCHES)
    limited = Caller(name="limited", key="limited", max_tokens=100)
    assert fill(admission, limited) == 100
    with pytest.raises(Overloaded):  # both classes count together
        reserve(admission, 10, limited, BATCH)
    with pytest.raises(TooLarge, match="max_tokens of 'limited'"):
        reserve(Admission(QUEUE, BATCHES), 101, limited)
    assert fill(admission, MODEST, priority=BATCH) > 100


def test_an_estimate_holds_no_more_than_what_could_be_accepted() -> None:
    admission = Admission(QUEUE, BATCHES)
    ticket = admission.reserve(
        model_name="m", priority=ONLINE, text_bytes=2400, deadline=None, now=0.0, most=50
    )
    assert ticket.tokens == admission.tokens(ONLINE) == 50


def test_nobody_waits_in_the_line_of_another() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)  # 100 tokens a second
    fill(admission, GREEDY, 100)
    for _ in range(50):
        with pytest.raises(Overloaded) as greedy:
            reserve(admission, 100, GREEDY)
    assert greedy.value.retry_after == 30
    fill(admission, MODEST, 100)
    with pytest.raises(Overloaded) as modest:
        reserve(admission, 100, MODEST)
    assert modest.value.retry_after < 5


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 300), st.sampled_from(PriorityClass)),
        max_size=60,
    )
)
def test_the_bounds_hold_whoever_asks(asked: list[tuple[int, int, PriorityClass]]) -> None:
    admission = Admission(QUEUE, BATCHES)
    tickets: list[Ticket] = []
    for number, tokens, priority in asked:
        try:
            caller = Caller(key=str(number), share=1.0 + number)
            tickets.append(reserve(admission, tokens, caller, priority))
        except (Overloaded, TooLarge):
            if tickets:
                admission.close(tickets.pop(0))
        total = sum(ticket.tokens for ticket in tickets)
        assert admission.tokens(ONLINE) + admission.tokens(BATCH) == total <= 1000
        assert admission.tokens(BATCH) <= 500
    for ticket in tickets:
        admission.close(ticket)
    assert admission.tokens(ONLINE) == admission.tokens(BATCH) == 0
    assert fill(admission, MODEST) == 800


def test_addresses_without_end_are_one_caller_together() -> None:
    admission = Admission(QueueLimits(max_queued_tokens=10**6), BATCHES)
    callers = (Caller(key=str(number)) for number in range(3 * MAX_CALLERS))
    assert len({reserve(admission, 1, each).account for each in callers}) == MAX_CALLERS + 1


# What is foreseen


def test_beside_a_long_batch_a_call_is_refused_only_until_the_batch_is_nearly_done() -> None:
    admission = Admission(QueueLimits(), BatchLimits())
    reserve(admission, 40_000, GREEDY)
    admission.observe("m", 8000, 2.0, now=0.0)  # and another like it begins
    with pytest.raises(Overloaded, match="too long"):
        reserve(admission, 100, MODEST, deadline=1.1, now=0.1)
    reserve(admission, 100, MODEST, deadline=2.8, now=1.8)


def test_a_short_deadline_is_kept_beside_the_queue_of_another() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)  # 100 tokens a second, a second a batch
    for _ in range(7):  # 7 s of work
        reserve(admission, 100, GREEDY)
    with pytest.raises(Overloaded, match="too long"):
        reserve(admission, 10, GREEDY, deadline=12.0, now=8.0)
    reserve(admission, 10, MODEST, deadline=12.0, now=8.0)
    with pytest.raises(Overloaded, match="too long"):  # a tenth of a second each
        reserve(admission, 10, MODEST, deadline=8.25, now=8.0)
