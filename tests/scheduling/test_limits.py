"""How large a batch may be: what time and memory teach."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dispatch import item_of

from guerdon.reward.scheduling.limits import BatchLimits, Pace
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch, Unit
from guerdon.reward.types import PriorityClass
from guerdon.serving.access.identity import Caller

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
CALLERS = [Caller(name=name, key=name) for name in ("one", "another")]


def run(
    scheduler: Scheduler, tokens: int, overhead: float, per_token: float, *, key: str = "m"
) -> list[Batch]:
    """Have so many tokens computed by an engine with such times, in items of 10 to 300.

    It is two callers', and all comes and is computed at once, so that none of it is lone work.
    """
    rng, batches = random.Random(0), []
    for number in range(tokens // 155):
        add(scheduler, rng.randint(10, 300), CALLERS[number % 2], key=key)
    while (batch := scheduler.next_batch(0.0).batch) is not None:
        batches.append(batch)
        scheduler.observe(key, batch.tokens, overhead + per_token * batch.tokens)
    return batches


def add(
    scheduler: Scheduler,
    tokens: int,
    caller: Caller = CALLERS[0],
    *,
    key: str = "m",
    priority: PriorityClass = BATCH,
    deadline: float | None = None,
    now: float = 0.0,
) -> None:
    scheduler.add(
        key, item_of(0, tokens), priority=priority, deadline=deadline, now=now, caller=caller
    )


@pytest.mark.parametrize(
    ("overhead", "per_token", "target"),
    [
        (0.005, 1 / 4_000, 980),  # two cores and a small model: a quarter of a second
        (0.005, 1 / 200_000, 8192),  # a GPU: as large as may be
        (0.005, 1 / 500, 512),  # slow: not below what wastes the engine
    ],
)
def test_a_batch_takes_as_long_as_it_may_and_no_longer(
    overhead: float, per_token: float, target: int
) -> None:
    batches = run(Scheduler(BatchLimits()), 200_000, overhead, per_token)
    assert batches[0].tokens <= 512  # nothing is known of it yet
    settled = [batch.tokens for batch in batches[10 : len(batches) * 3 // 4]]
    assert all(target * 0.6 <= tokens <= target * 1.1 for tokens in settled), settled


def lone_batch(scheduler: Scheduler, now: float) -> int:
    """The tokens of a batch at this time, of a queue of some 20,000 that one caller filled."""
    for _ in range(200):
        add(scheduler, 100, now=now)
    batch = scheduler.next_batch(now).batch
    assert batch is not None
    return batch.tokens


@pytest.mark.parametrize(
    "other",
    [
        {"caller": CALLERS[1]},
        {"key": "another model"},
        {"priority": ONLINE},
        {"deadline": 6.5},
    ],
)
def test_batches_take_longer_while_nothing_else_comes(other: dict[str, Any]) -> None:
    scheduler = Scheduler(BatchLimits())
    scheduler.observe("m", 4000, 1.0)
    assert 4900 <= lone_batch(scheduler, 0.0) <= 5100  # a quarter of what waits
    assert 7000 <= lone_batch(scheduler, 1.0) <= 8000  # 2 s, eight times as long as others
    add(scheduler, 10, now=2.0, **other)
    assert scheduler.next_batch(2.0).batch is not None
    assert lone_batch(scheduler, 4.0) <= 1100
    assert lone_batch(scheduler, 61.9) <= 1100  # and for a minute
    assert lone_batch(scheduler, 64.1) >= 7000


def test_what_waits_for_others_keeps_batches_as_short_as_ever() -> None:
    scheduler = Scheduler(BatchLimits())
    scheduler.observe("m", 4000, 1.0)
    for number in range(2000):
        add(scheduler, 100, CALLERS[number % 2])
    for now in (0.0, 61.0, 1000.0):
        batch = scheduler.next_batch(now).batch
        assert batch is not None
        assert batch.tokens <= 1100


def test_bulk_work_waits_for_its_credit_however_long_online_work_has_waited() -> None:
    scheduler = Scheduler(BatchLimits())
    for key in ("online", "bulk"):
        scheduler.observe(key, 4000, 1.0)
    for _ in range(1000):
        add(scheduler, 200, key="online", priority=ONLINE)
    for turn in range(200):
        item = item_of(100, *[400] * 16)
        scheduler.add("bulk", item, priority=BATCH, deadline=None, now=turn / 2)
        batch = scheduler.next_batch(turn / 2).batch
        assert batch is not None
        assert batch.parts


def test_engines_share_what_waits() -> None:
    sizes = []
    for engines in (1, 2, 4):
        scheduler = Scheduler(BatchLimits(), engines)
        scheduler.observe("m", 4000, 1.0)
        sizes.append(lone_batch(scheduler, 0.0))
    assert sizes == [5000, 2500, 1200]


def test_a_short_queue_of_lone_work_is_not_computed_at_once() -> None:
    scheduler = Scheduler(BatchLimits())
    scheduler.observe("m", 4000, 1.0)
    for _ in range(18):
        add(scheduler, 100)
    batch = scheduler.next_batch(0.0).batch
    assert batch is not None
    assert batch.tokens <= 1000  # 0.25 s, as ever


@given(st.data())
def test_tokens_that_wait_are_counted_whatever_happens_to_them(data: st.DataObject) -> None:
    scheduler = Scheduler(BatchLimits(max_batch_tokens=100, max_batch_sequences=5))
    units: list[Unit] = []
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["add", "add", "cancel", "batch", "expire"]))
        if what == "add":
            suffixes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
            item = item_of(data.draw(st.integers(0, 60)), *suffixes)
            deadline = data.draw(st.sampled_from([None, 1.0]))
            caller = data.draw(st.sampled_from(CALLERS))
            units.append(
                scheduler.add("m", item, priority=BATCH, deadline=deadline, now=0.0, caller=caller)
            )
        elif what == "cancel" and units:
            scheduler.cancel(data.draw(st.sampled_from(units)))
        elif what == "batch":
            scheduler.next_batch(0.0)
        elif what == "expire":
            scheduler.next_batch(2.0)
        queue = scheduler._batch.queues.get("m")
        waiting = sum(unit.tokens for unit in units if unit.queued)
        assert (queue.tokens if queue else 0) == waiting


def test_without_a_bound_on_time_the_first_batch_is_full() -> None:
    limits = BatchLimits(max_batch_seconds=math.inf)
    assert run(Scheduler(limits), 20_000, 0.0, 1.0)[0].tokens > 8192 - 300


def test_each_model_has_its_own_pace() -> None:
    scheduler = Scheduler(BatchLimits())
    slow = run(scheduler, 50_000, 0.0, 1 / 4_000, key="slow")
    fast = run(scheduler, 50_000, 0.0, 1 / 400_000, key="fast")
    assert max(batch.tokens for batch in slow) < 1100
    assert max(batch.tokens for batch in fast) > 7000


def test_time_splits_no_item_whose_prefix_would_be_computed_over_and_over() -> None:
    scheduler = Scheduler(BatchLimits())
    run(scheduler, 100_000, 0.0, 1 / 4_000)  # batches of 1,000 tokens
    for prefix, sizes in ((400, [3200]), (10, [994] * 4), (2000, [8192, 2096])):
        responses = sum((size - prefix) // 12 for size in sizes)
        scheduler.add(
            "m", item_of(prefix, *[12] * responses), priority=BATCH, deadline=None, now=0.0
        )
        parts = []
        while (batch := scheduler.next_batch(0.0).batch) is not None:
            parts.append(batch.tokens)
        assert parts == pytest.approx(sizes, abs=60)


def test_a_batch_is_closed_where_more_would_cost_the_first_its_deadline() -> None:
    scheduler = Scheduler(BatchLimits())
    run(scheduler, 100_000, 0.0, 1 / 4_000)
    hasty = scheduler.add("m", item_of(0, 100), priority=BATCH, deadline=0.15, now=0.0)
    for _ in range(10):
        scheduler.add("m", item_of(0, 100), priority=BATCH, deadline=None, now=0.0)
    batch = scheduler.next_batch(0.0).batch
    assert batch is not None
    assert hasty in [part.unit for part in batch.parts]
    assert 500 <= batch.tokens <= 600  # 0.15 s


def test_a_batch_is_not_cut_to_pieces_for_a_call_that_is_all_but_late() -> None:
    scheduler = Scheduler(BatchLimits())
    run(scheduler, 100_000, 0.0, 1 / 4_000)
    for deadline in (0.03, None, None, None, None, None, None, None):
        scheduler.add("m", item_of(0, 100), priority=BATCH, deadline=deadline, now=0.0)
    batch = scheduler.next_batch(0.0).batch
    assert batch is not None
    assert batch.tokens == 800


def test_memory_halves_the_batches_of_that_model_and_gives_back_slowly() -> None:
    scheduler = Scheduler(BatchLimits(max_batch_seconds=math.inf))
    scheduler.out_of_memory("m", 8192)
    scheduler.out_of_memory("m", 4096)
    run(scheduler, 20_000, 0.0, 1e-6, key="other")
    sizes = [batch.tokens for batch in run(scheduler, 3_000_000, 0.0, 1e-6)]
    assert 2048 - 300 < sizes[0] <= 2048
    assert all(later <= earlier + 300 + 128 for earlier, later in itertools.pairwise(sizes))
    assert sizes[60] < 8192 - 300 < max(sizes)
    assert run(scheduler, 20_000, 0.0, 1e-6, key="other")[0].tokens > 8192 - 300


def test_small_batches_do_not_give_memory_back() -> None:
    scheduler = Scheduler(BatchLimits(max_batch_seconds=math.inf))
    scheduler.out_of_memory("m", 8192)
    for _ in range(500):
        scheduler.observe("m", 2000, 0.1)
    assert run(scheduler, 20_000, 0.0, 1e-6)[0].tokens <= 4096


def test_one_response_is_computed_however_little_memory_there_was() -> None:
    scheduler = Scheduler(BatchLimits())
    for tokens in (64, 3, 1, 1):
        scheduler.out_of_memory("m", tokens)
    scheduler.add("m", item_of(10, 5, 5), priority=BATCH, deadline=None, now=0.0)
    batches = [scheduler.next_batch(0.0).batch for _ in range(2)]
    assert [batch.sequences for batch in batches if batch] == [1, 1]


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_pace_finds_overhead_and_slope(noise: float) -> None:
    rng, pace = random.Random(1), Pace(1e9)
    for _ in range(2000):
        tokens = rng.randint(20, 4000)
        pace.observe("m", tokens, (0.02 + tokens / 10_000) * rng.uniform(1 - noise, 1 + noise))
    timing = pace.timing("m")
    assert timing is not None
    for tokens in (100, 1000, 4000):
        expected = 0.02 + tokens / 10_000
        assert timing.seconds(tokens, 8192) == pytest.approx(expected, rel=0.15 + noise)
    assert pace.timing("unknown") is None
    assert pace.overall_timing() is not None


def test_pace_of_equal_batches_is_a_plain_proportion() -> None:
    pace = Pace(30_000)
    for turn in range(50):
        pace.observe("m", 1000, 0.9 if turn % 2 else 1.1)
    timing = pace.timing("m")
    assert timing is not None
    assert timing.overhead == pytest.approx(0, abs=1e-9)
    assert timing.per_token == pytest.approx(1e-3, rel=0.05)


def test_a_slow_first_batch_is_forgotten_also_when_all_others_are_small() -> None:
    pace = Pace(30_000)
    pace.observe("m", 20, 30.0)
    for _ in range(600):
        pace.observe("m", 20, 0.01)
    timing = pace.timing("m")
    assert timing is not None
    assert timing.seconds(20, 8192) == pytest.approx(0.01, rel=0.1)
