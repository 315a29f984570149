"""The rules of docs/scheduling.md, held against random work."""

from __future__ import annotations

import random
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from tests.support.dispatch import item_of, marks

from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch, Unit
from guerdon.reward.types import PriorityClass

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
LIMITS = BatchLimits(max_batch_tokens=100, max_batch_sequences=6, batch_share=0.25, patience=10)


class Books(RuleBasedStateMachine):
    """Random work against the plainest books that can be kept of it."""

    units = Bundle("units")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.now = 0.0
        self.waiting: dict[Unit, list[int]] = {}
        """The marks of the responses that nobody has had yet."""
        self.marks = 0

    @rule(
        target=units,
        key=st.sampled_from("ab"),
        priority=st.sampled_from(PriorityClass),
        prefix=st.integers(0, 40),
        suffixes=st.lists(st.integers(1, 60) | st.integers(61, 150), min_size=1, max_size=9),
        wait=st.none() | st.floats(0.01, 30),
    )
    def add(
        self,
        key: str,
        priority: PriorityClass,
        prefix: int,
        suffixes: list[int],
        wait: float | None,
    ) -> Unit:
        unit = self.scheduler.add(
            key,
            item_of(prefix, *suffixes, mark=self.marks),
            priority=priority,
            deadline=None if wait is None else self.now + wait,
            now=self.now,
        )
        self.waiting[unit] = list(range(self.marks, self.marks + len(suffixes)))
        self.marks += len(suffixes)
        return unit

    @rule(seconds=st.floats(0, 8))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(unit=units)
    def cancel(self, unit: Unit) -> None:
        assert self.scheduler.cancel(unit) == (self.waiting.pop(unit, None) is not None)

    @rule()
    def next_batch(self) -> None:
        late = {u for u in self.waiting if u.deadline is not None and u.deadline <= self.now}
        before = {u: u.skipped for u in self.waiting if u not in late}
        formed = self.scheduler.next_batch(self.now)
        assert set(formed.expired) == late
        assert len(formed.expired) == len(late)
        for unit in late:
            del self.waiting[unit]
        assert (formed.batch is None) == (not before)
        if formed.batch is not None:
            self.check(formed.batch, before)

    def check(self, batch: Batch, before: dict[Unit, bool]) -> None:
        assert {part.unit.key for part in batch.parts} == {batch.key}
        assert sum(part.item.tokens for part in batch.parts) == batch.tokens
        assert sum(part.item.sequences for part in batch.parts) == batch.sequences
        assert batch.tokens > 0
        # One response may be longer than a batch, and is then alone in it.
        assert batch.tokens <= LIMITS.max_batch_tokens or batch.sequences == 1
        assert 0 < batch.sequences <= LIMITS.max_batch_sequences
        for part in batch.parts:
            had = self.waiting[part.unit]  # neither cancelled nor expired, nor computed before
            count = part.stop - part.start
            assert marks(part.item) == had[:count]
            del had[:count]
            if not had:
                del self.waiting[part.unit]
        self.check_order(batch, before)

    def check_order(self, batch: Batch, before: dict[Unit, bool]) -> None:
        """Whatever was left out has no right to what was taken after it."""
        taken = {part.unit for part in batch.parts}
        for left in before.keys() - taken:
            fits = (
                batch.tokens + left.tokens <= LIMITS.max_batch_tokens
                and batch.sequences + left.sequences <= LIMITS.max_batch_sequences
            )
            for unit in taken:
                if left.key == unit.key and left.priority is unit.priority and fits:
                    assert before[unit] or (unit.due, unit.order) < (left.due, left.order)
        # The class that begins a batch begins it with what was skipped over before.
        lead = batch.parts[0].unit
        if any(
            skipped
            for unit, skipped in before.items()
            if unit.key == lead.key and unit.priority is lead.priority
        ):
            assert before[lead]

    @precondition(lambda self: self.waiting)
    @rule()
    def cancel_all(self) -> None:
        assert all(self.scheduler.cancel(unit) for unit in self.waiting)
        self.waiting.clear()

    @invariant()
    def counts(self) -> None:
        assert len(self.scheduler) == len(self.waiting)
        for unit, left in self.waiting.items():
            suffixes = unit.item.suffixes[-len(left) :]
            assert unit.tokens == len(unit.item.prefix) + sum(len(suffix) for suffix in suffixes)

    def teardown(self) -> None:
        self.now = 0.0  # so that nothing more expires: what is left must all be computed, once
        for _ in range(1 + sum(map(len, self.waiting.values()))):
            self.next_batch()
        assert not self.waiting


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def one(scheduler: Scheduler, tokens: int, key: str = "a", **more: object) -> Unit:
    """Add one response of so many tokens."""
    options = {"priority": ONLINE, "deadline": None, "now": 0.0} | more
    return scheduler.add(key, item_of(tokens - 1, 1), **options)  # type: ignore[arg-type]


def served(scheduler: Scheduler, now: float = 0.0) -> list[Unit]:
    batch = scheduler.next_batch(now).batch
    assert batch is not None
    return [part.unit for part in batch.parts]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0.05, 0.6),
    online_keys=st.sampled_from(["a", "ab"]),
    batch_keys=st.sampled_from(["a", "b", "abc"]),
)
def test_each_class_gets_its_share_at_all_times_while_both_wait(
    seed: int, share: float, online_keys: str, batch_keys: str
) -> None:
    limits = BatchLimits(max_batch_tokens=200, max_batch_sequences=50, batch_share=share)
    scheduler, rng = Scheduler(limits), random.Random(seed)
    tokens = {ONLINE: 0, BATCH: 0}
    by_key = dict.fromkeys(batch_keys, 0)
    queued = {
        (p, key): 0 for p, keys in ((ONLINE, online_keys), (BATCH, batch_keys)) for key in keys
    }
    for _ in range(300):
        for priority, key in queued:
            while queued[priority, key] < 500:
                unit = one(scheduler, rng.randint(2, 200), key, priority=priority)
                queued[priority, key] += unit.tokens
        batch = scheduler.next_batch(0.0).batch
        assert batch is not None
        for part in batch.parts:
            tokens[part.unit.priority] += part.item.tokens
            queued[part.unit.priority, batch.key] -= part.item.tokens
            if part.unit.priority is BATCH:
                by_key[batch.key] += part.item.tokens
        earned = tokens[ONLINE] * share / (1 - share)
        # At most what it earned, so ONLINE waits for no more; at least that, less what its
        # next unit is still gathering and what one batch earns.
        assert tokens[BATCH] <= earned + 1e-6
        assert tokens[BATCH] >= earned - 200 - 200 * share / (1 - share)
        assert max(by_key.values()) - min(by_key.values()) <= 2 * 200


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_model_starves_another_however_urgent_it_claims_to_be(seed: int) -> None:
    scheduler, rng = Scheduler(LIMITS), random.Random(seed)
    tokens = {"urgent": 0, "patient": 0, "idle": 0}
    queued = {"urgent": 0, "patient": 0}
    for turn in range(200):
        now = turn * 0.01
        for key, deadline in (("urgent", now + 5), ("patient", None)):
            while queued[key] < 500:
                size = rng.randint(2, 100)
                one(scheduler, size, key, now=now, deadline=deadline)
                queued[key] += size
        if turn == 150:  # it has no claim for the time in which it asked for nothing
            for _ in range(100):
                one(scheduler, 50, "idle", now=now)
        for unit in served(scheduler, now):
            tokens[unit.key] += unit.item.tokens
            queued[unit.key] = queued.get(unit.key, 0) - unit.item.tokens
    assert abs(tokens["urgent"] - tokens["patient"]) <= 2 * LIMITS.max_batch_tokens
    assert tokens["idle"] <= 50 / 3 * LIMITS.max_batch_tokens + 2 * LIMITS.max_batch_tokens


def test_the_more_urgent_model_goes_first_while_both_have_had_the_same() -> None:
    scheduler = Scheduler(LIMITS)
    one(scheduler, 50, "a")
    urgent = one(scheduler, 50, "b", deadline=1.0)
    assert served(scheduler) == [urgent]


def test_earliest_deadline_first_and_none_means_due_after_the_patience() -> None:
    scheduler = Scheduler(LIMITS)
    late = one(scheduler, 60, deadline=100.0)  # due at 10, when its patience ends
    middle = one(scheduler, 60, deadline=9.0)
    first = one(scheduler, 60, deadline=3.0)
    never = one(scheduler, 60, now=0.5)
    assert [served(scheduler) for _ in range(4)] == [[first], [middle], [late], [never]]


def test_what_has_waited_longer_than_the_patience_is_ahead_of_all_newcomers() -> None:
    scheduler = Scheduler(LIMITS)
    patient = one(scheduler, 60)
    for turn in range(100):
        now = turn * 0.5
        for _ in range(2):  # twice what can be computed, all of it urgent
            one(scheduler, 60, now=now, deadline=now + 1)
        if patient in served(scheduler, now):
            assert now <= LIMITS.patience + 0.5
            return
    pytest.fail("starved")


def test_a_long_unit_is_skipped_over_once_at_most_and_blocks_nobody() -> None:
    scheduler = Scheduler(LIMITS)
    first, long = one(scheduler, 30, deadline=1.0), one(scheduler, 100, deadline=2.0)
    short = one(scheduler, 60, deadline=3.0)
    assert served(scheduler) == [first, short]
    one(scheduler, 30, deadline=0.5)
    assert served(scheduler) == [long]


def test_a_large_item_is_split_by_responses_with_its_prefix_in_every_part() -> None:
    scheduler = Scheduler(LIMITS)
    unit = scheduler.add(
        "a", item_of(40, 30, 30, 30, 30, 10), priority=ONLINE, deadline=None, now=0.0
    )
    other = one(scheduler, 20)
    batches = [scheduler.next_batch(0.0).batch for _ in range(3)]
    parts = [(p.unit, p.start, p.stop) for b in batches if b for p in b.parts]
    assert parts == [(unit, 0, 2), (unit, 2, 4), (unit, 4, 5), (other, 0, 1)]
    assert all(len(p.item.prefix) == 40 for b in batches if b for p in b.parts if p.unit is unit)
    assert not len(scheduler)


def test_batch_work_uses_all_of_an_idle_engine_and_owes_nothing_for_it() -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(5):
        one(scheduler, 100, priority=BATCH)
    assert all(served(scheduler)[0].priority is BATCH for _ in range(4))
    for _ in range(4):
        one(scheduler, 100)
    order = [served(scheduler)[0].priority for _ in range(5)]
    assert order == [ONLINE, ONLINE, ONLINE, BATCH, ONLINE]  # a quarter, as its share says


def test_batches_of_bulk_work_are_short_while_online_work_comes() -> None:
    scheduler: Scheduler = Scheduler(BatchLimits(max_batch_seconds=1.0, shared_batch_seconds=0.05))
    scheduler.observe("a", 1000, 0.2)  # 5,000 tokens a second
    for _ in range(200):
        one(scheduler, 50, priority=BATCH)

    def tokens(now: float) -> int:
        batch = scheduler.next_batch(now).batch
        assert batch is not None
        return batch.tokens

    assert tokens(0.0) > 1000
    one(scheduler, 50, priority=ONLINE, now=1.0)
    assert tokens(1.0) == 50  # it goes first
    assert tokens(1.9) == 250  # 0.05 s of BATCH
    assert tokens(2.1) > 1000


def test_work_that_is_gone_does_not_stay_in_memory_until_its_far_deadline() -> None:
    class Owner:
        pass

    scheduler = Scheduler(LIMITS)
    owners = weakref.WeakSet[Owner]()
    for turn in range(5000):
        owner = Owner()
        owners.add(owner)
        unit = one(scheduler, 100, deadline=1e6, owner=owner)
        if turn % 2:
            scheduler.cancel(unit)
        else:
            served(scheduler)
    del owner, unit
    assert len(owners) < 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_tokens": 0},
        {"max_batch_sequences": 0},
        {"batch_share": 1.0},
        {"batch_share": -0.1},
        {"patience": 0.0},
        {"patience": float("inf")},
    ],
)
def test_limits_without_sense_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchLimits(**wrong)  # type: ignore[arg-type]


def test_an_item_without_a_response_is_not_taken_in() -> None:
    scheduler = Scheduler(LIMITS)
    with pytest.raises(ValueError, match="without a response"):
        scheduler.add("a", item_of(3), priority=ONLINE, deadline=None, now=0.0)
    assert not len(scheduler)


@pytest.mark.parametrize("priority", list(PriorityClass))
def test_a_response_longer_than_a_batch_runs_alone(priority: PriorityClass) -> None:
    scheduler = Scheduler(LIMITS)
    first, last = one(scheduler, 20, priority=priority), one(scheduler, 30, now=2.0)
    item = item_of(50, 10, 451, 5)
    long = scheduler.add("a", item, priority=priority, deadline=None, now=1.0)
    parts = []
    while len(scheduler):
        batch = scheduler.next_batch(2.0).batch
        assert batch is not None
        parts.append([(part.unit, part.tokens) for part in batch.parts])
    alone = [batch for batch in parts if (long, 501) in batch]
    assert alone == [[(long, 501)]]
    assert sorted(tokens for batch in parts for _, tokens in batch) == [20, 30, 55, 60, 501]
    assert {unit for batch in parts for unit, _ in batch} == {first, last, long}


def test_a_long_response_of_batch_pays_with_its_credit_like_any_other() -> None:
    scheduler = Scheduler(LIMITS)  # a quarter for BATCH
    one(scheduler, 900, priority=BATCH)
    for _ in range(60):
        one(scheduler, 100)
    order = [served(scheduler)[0].priority for _ in range(61)]
    assert order.index(BATCH) == 27  # 2,700 tokens of ONLINE work earn it 900


def test_skipped_units_keep_their_order() -> None:
    scheduler = Scheduler(LIMITS)
    first = one(scheduler, 85)
    large, middle, small, last = (one(scheduler, tokens) for tokens in (80, 75, 20, 75))
    order = [served(scheduler) for _ in range(4)]
    assert order == [[first], [large, small], [middle], [last]]


def test_work_expires_at_its_deadline_not_after_it() -> None:
    scheduler = Scheduler(LIMITS)
    unit = one(scheduler, 10, deadline=2.0)
    formed = scheduler.next_batch(2.0)
    assert (formed.batch, formed.expired) == (None, [unit])


def test_batch_gets_its_share_also_when_its_responses_are_many_and_short() -> None:
    limits = BatchLimits(max_batch_tokens=200, max_batch_sequences=50, batch_share=0.5)
    scheduler, tokens = Scheduler(limits), {ONLINE: 0, BATCH: 0}
    for _ in range(300):
        for _ in range(4):
            scheduler.add("a", item_of(0, *[1] * 40), priority=BATCH, deadline=None, now=0.0)
            one(scheduler, 150)
        batch = scheduler.next_batch(0.0).batch
        assert batch is not None
        for part in batch.parts:
            tokens[part.unit.priority] += part.tokens
    assert tokens[ONLINE] - 400 <= tokens[BATCH] <= tokens[ONLINE]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_holds_while_thousands_come_and_leave(seed: int) -> None:
    """Enough of them for the heaps to be cleared out, again and again, while they are used."""
    scheduler, rng = Scheduler(BatchLimits(max_batch_tokens=1)), random.Random(seed)
    waiting: dict[Unit, None] = {}
    for _ in range(20_000):
        action = rng.random()
        if action < 0.5 or not waiting:
            wait = rng.uniform(0.01, 4.9)  # due at its deadline, before its patience ends
            waiting[
                scheduler.add("a", item_of(0, 1), priority=BATCH, deadline=100 + wait, now=100.0)
            ] = None
        elif action < 0.8:
            unit = rng.choice(list(waiting)) if len(waiting) < 100 else next(iter(waiting))
            del waiting[unit]
            assert scheduler.cancel(unit)
        elif action < 0.85:
            first = min(waiting, key=lambda unit: (unit.due, unit.order))
            del waiting[first]
            assert served(scheduler, 100.0) == [first]
    late = sorted(waiting, key=lambda unit: (unit.due, unit.order))[: len(waiting) // 2]
    formed = scheduler.next_batch(late[-1].due)
    assert formed.expired == late
    assert len(scheduler) == len(waiting) - len(late) - 1
