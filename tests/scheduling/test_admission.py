"""The books of admission: one bound, whole or not at all, and honest about when to come back."""

from __future__ import annotations

import heapq
import math
import random
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from guerdon.reward.scheduling.admission import Admission, Ticket
from guerdon.reward.scheduling.limits import BatchLimits, QueueLimits
from guerdon.reward.types import PriorityClass
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, Overloaded, TooLarge

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
BATCHES = BatchLimits(max_batch_tokens=100, batch_share=0.2, patience=5)
QUEUE = QueueLimits(
    max_queued_tokens=1000,
    max_text_bytes=3000,
    batch_fraction=0.8,
    caller_fraction=1,
    bytes_per_token=2,
)


def reserve(
    admission: Admission,
    tokens: int,
    priority: PriorityClass = ONLINE,
    deadline: float | None = None,
    now: float = 0.0,
) -> Ticket:
    """Reserve and settle so many tokens, estimated exactly."""
    ticket = admission.reserve(
        model_name="m", priority=priority, text_bytes=2 * tokens, deadline=deadline, now=now
    )
    admission.settle(ticket, tokens, now=now)
    return ticket


class Books(RuleBasedStateMachine):
    """What is held is the sum of what was taken, and never more than the bounds."""

    tickets = Bundle("tickets")
    settled = Bundle("settled")

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(QUEUE, BATCHES)
        self.held: dict[Ticket, tuple[int, int]] = {}

    @rule(target=tickets, priority=st.sampled_from(PriorityClass), size=st.integers(0, 1200))
    def reserve(self, priority: PriorityClass, size: int) -> Ticket | None:
        try:
            ticket = self.admission.reserve(
                model_name="m", priority=priority, text_bytes=size, deadline=None, now=0.0
            )
        except Overloaded:
            tokens = self.sum(0, priority) + max(1, math.ceil(size / 2))
            text = self.sum(1, priority) + size
            others = {i: self.sum(i) - self.sum(i, priority) for i in (0, 1)}
            part = 1.0 if priority is ONLINE else 0.8
            assert (
                tokens > part * 1000
                or text > part * 3000
                or tokens + others[0] > 1000
                or text + others[1] > 3000
            )
            return None
        self.held[ticket] = (max(1, math.ceil(size / 2)), size)
        return ticket

    @rule(target=settled, ticket=consumes(tickets), tokens=st.integers(0, 1100))
    def settle(self, ticket: Ticket | None, tokens: int) -> Ticket | None:
        if ticket is None:
            return None
        del self.held[ticket]
        try:
            self.admission.settle(ticket, tokens, now=0.0)
        except TooLarge:
            assert tokens > (1000 if ticket.priority is ONLINE else 800)
            return None
        except Overloaded:
            return None
        self.held[ticket] = (tokens, 0)
        return ticket

    @rule(ticket=settled, part=st.floats(0, 1))
    def release(self, ticket: Ticket | None, part: float) -> None:
        if ticket in self.held:
            tokens = self.held[ticket][0]
            self.admission.release(ticket, int(part * tokens))
            self.held[ticket] = (tokens - int(part * tokens), 0)

    @rule(ticket=tickets | settled)
    def close(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self.admission.close(ticket)
            if ticket in self.held:
                self.held[ticket] = (0, 0)

    def sum(self, which: int, priority: PriorityClass | None = None) -> int:
        return sum(pair[which] for t, pair in self.held.items() if priority in (None, t.priority))

    @invariant()
    def balanced(self) -> None:
        for priority in PriorityClass:
            assert self.admission.tokens(priority) == self.sum(0, priority)
            assert self.admission.text_bytes(priority) == self.sum(1, priority)
        assert self.sum(0) <= 1000
        assert self.sum(1) <= 3000
        assert self.sum(0, BATCH) <= 800
        assert self.sum(1, BATCH) <= 2400


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_many_items_are_admitted_exactly_when_one_of_the_same_size_is(sizes: list[int]) -> None:
    whole, single = Admission(QUEUE, BATCHES), Admission(QUEUE, BATCHES)

    def admits_one() -> bool:
        try:
            reserve(whole, sum(sizes))
        except (Overloaded, TooLarge):
            return False
        return True

    def admits_each() -> bool:
        try:
            for size in sizes:
                reserve(single, size)
        except Overloaded:
            return False
        return True

    assert admits_one() == admits_each() == (sum(sizes) <= 1000)


def test_batch_leaves_room_for_online() -> None:
    admission = Admission(QUEUE, BATCHES)
    reserve(admission, 800, BATCH)
    with pytest.raises(Overloaded):
        reserve(admission, 1, BATCH)
    reserve(admission, 200, ONLINE)
    with pytest.raises(Overloaded):
        reserve(admission, 1, ONLINE)


def test_what_can_never_fit_names_its_limit_and_holds_nothing() -> None:
    admission = Admission(QUEUE, BATCHES)
    with pytest.raises(TooLarge, match="max_text_bytes") as caught:
        admission.reserve(model_name="m", priority=ONLINE, text_bytes=3001, deadline=None, now=0.0)
    assert isinstance(caught.value, InvalidRequest)
    ticket = admission.reserve(
        model_name="m", priority=ONLINE, text_bytes=2900, deadline=None, now=0.0
    )  # estimated at more than the queue holds: only counting tells
    with pytest.raises(TooLarge, match="max_queued_tokens"):
        admission.settle(ticket, 1001, now=0.0)
    assert admission.tokens(ONLINE) == admission.text_bytes(ONLINE) == 0
    reserve(admission, 1000)


def test_a_deadline_that_has_passed_is_not_overload() -> None:
    with pytest.raises(DeadlinePassed):
        reserve(Admission(QUEUE, BATCHES), 1, deadline=1.0, now=1.0)


def test_sheds_what_the_queue_cannot_reach_in_time() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)  # 100 tokens a second
    reserve(admission, 600)  # 6 s of work, due in 5 s as the patience says
    with pytest.raises(Overloaded, match="too long") as caught:
        reserve(admission, 10, deadline=7.5)
    # 6.1 s and half as much again are foreseen: when 1.1 s of it are done, there is time.
    assert caught.value.retry_after == pytest.approx(1.1, abs=0.02)
    reserve(admission, 10, deadline=9.5)


@pytest.mark.parametrize("other", list(PriorityClass))
def test_the_batch_that_runs_counts_and_so_does_what_it_has_done(other: PriorityClass) -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)
    reserve(admission, 100, other, deadline=None, now=10.0)  # a whole batch: until 11
    with pytest.raises(Overloaded):
        reserve(admission, 10, deadline=11.0, now=10.0)
    reserve(admission, 10, deadline=11.5, now=10.9)


def test_an_engine_without_work_is_tried_whatever_it_was_measured_at() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 10, 60.0, now=0.0)  # a first batch, say
    ticket = reserve(admission, 10, deadline=1.0)
    with pytest.raises(Overloaded):
        reserve(admission, 10, deadline=1.0)
    for _ in range(500):
        admission.close(ticket)
        admission.observe("m", 10, 0.01, now=0.0)
        ticket = reserve(admission, 10, deadline=1.0)
    reserve(admission, 10, deadline=1.0)


def test_urgent_work_is_not_shed_for_what_it_overtakes() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)
    reserve(admission, 900)  # 9 s of work, due in 5 s
    reserve(admission, 10, deadline=2.0)  # but one batch of it may run already


@pytest.mark.parametrize("preemptible", [False, True])
def test_online_work_waits_for_no_bulk_batch_that_stands_aside(preemptible: bool) -> None:
    admission = Admission(QUEUE, BatchLimits(batch_share=0.0))
    admission.observe(
        "m", 1000, 10.0, now=0.0, preemptible=preemptible, model_preemptible=preemptible
    )
    reserve(admission, 700, BATCH)  # 7 s
    with nullcontext() if preemptible else pytest.raises(Overloaded):
        reserve(admission, 10, ONLINE, deadline=1.0)
    with pytest.raises(Overloaded):
        reserve(admission, 10, BATCH, deadline=1.0)


def test_without_a_measurement_no_wait_is_made_up() -> None:
    admission = Admission(QUEUE, BATCHES)
    reserve(admission, 900)
    reserve(admission, 10, deadline=0.001)


def test_those_sent_away_together_are_not_all_called_back_together() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)
    reserve(admission, 1000)
    times = []
    for _ in range(5):
        with pytest.raises(Overloaded) as caught:
            reserve(admission, 100)
        times.append(caught.value.retry_after)
    assert times == pytest.approx([1, 2, 3, 4, 5])


def test_who_cannot_come_back_in_time_holds_no_place_in_the_line() -> None:
    admission = Admission(QUEUE, BATCHES)
    admission.observe("m", 1000, 10.0, now=0.0)
    reserve(admission, 1000)
    for _ in range(100):
        with pytest.raises(Overloaded):
            reserve(admission, 100, deadline=0.5)
    with pytest.raises(Overloaded) as caught:
        reserve(admission, 100)
    assert caught.value.retry_after == pytest.approx(1)


@pytest.mark.parametrize("priority", list(PriorityClass))
@pytest.mark.parametrize("seed", range(5))
def test_whoever_comes_back_when_told_mostly_finds_room(priority: PriorityClass, seed: int) -> None:
    """A burst of 40 callers on a full queue; the engine is simulated, time and all."""
    admission, rng = Admission(QUEUE, BATCHES), random.Random(seed)
    rate = rng.uniform(50, 5000)
    admission.observe("m", 100, 100 / rate * rng.uniform(0.8, 1.2), now=0.0)
    events = [(0.0, i, "call", rng.randint(20, 120)) for i in range(40)]
    order, queue, busy = 40, [], False
    returned = found = 0
    first = set(range(40))
    while events:
        now, number, kind, tokens = heapq.heappop(events)
        if kind == "done":
            ticket = queue.pop(0)
            admission.observe("m", ticket.tokens, tokens / 1e6, now=now)
            admission.close(ticket)
            busy = False
        else:
            returned += number not in first
            try:
                queue.append(reserve(admission, tokens, priority, now=now))
                found += number not in first
            except Overloaded as error:
                order += 1
                heapq.heappush(events, (now + error.retry_after, order, "call", tokens))
        if queue and not busy:
            busy, order = True, order + 1
            seconds = queue[0].tokens / rate * rng.uniform(0.8, 1.2)
            heapq.heappush(events, (now + seconds, order, "done", int(seconds * 1e6)))
    assert returned >= 10
    assert found / returned >= 0.75, f"{found} of {returned}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_queued_tokens": 0},
        {"max_text_bytes": 0},
        {"batch_fraction": 0.0},
        {"batch_fraction": 1.1},
        {"bytes_per_token": 0.0},
    ],
)
def test_limits_without_sense_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QueueLimits(**wrong)  # type: ignore[arg-type]


def test_a_burst_after_a_quiet_hour_is_not_taken_for_overload() -> None:
    """Small calls one at a time tell the overhead: a hundred of them take little longer."""
    admission = Admission(QueueLimits(), BatchLimits())
    for _ in range(200):
        admission.observe("m", 20, 0.01, now=0.0)
    for _ in range(100):
        admission.reserve(model_name="m", priority=ONLINE, text_bytes=60, deadline=0.2, now=0.0)
