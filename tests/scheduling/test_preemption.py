"""ONLINE work goes between the layers of batches that stand aside, which still get their share."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling.test_dispatcher import (
    ask_at_random,
    hold,
    running,
    score,
    scores_of,
    settle,
)
from tests.scheduling.test_limits import CALLERS
from tests.support.dispatch import Keeper, MarkModel, item_of, marks

from guerdon.reward.scheduling.calls import ItemResult
from guerdon.reward.scheduling.dispatcher import Dispatcher
from guerdon.reward.scheduling.events import Failure
from guerdon.reward.scheduling.in_hand import BatchesInHand
from guerdon.reward.scheduling.limits import BatchLimits, DispatchLimits
from guerdon.reward.scheduling.reuse import KnownBeginnings
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch, Unit
from guerdon.reward.types import (
    BatchScores,
    EncodedItem,
    EngineLost,
    EngineOutOfMemory,
    ModelInfo,
    PriorityClass,
)
from guerdon.serving.errors import Unavailable

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
LIMITS = DispatchLimits(
    batch=BatchLimits(max_batch_tokens=100, max_batch_sequences=64, batch_share=0.0)
)
"""BATCH has no share: it stands aside as often as it is asked to."""


class LayeredModel(MarkModel):
    """A model whose batches stand aside: those that go between layers don't wait at its gate.

    Args:
        between: called with the items of each batch that goes between layers; may raise.
    """

    def __init__(
        self, *, between: Callable[[Sequence[EncodedItem]], None] = lambda items: None
    ) -> None:
        super().__init__()
        self._between = between
        self.preempting: list[list[int]] = []

    @property
    def info(self) -> ModelInfo:
        return dataclasses.replace(super().info, preemptible=True)

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        if not preempting:
            return super().score(items, engine)
        self._between(items)
        open_gate = MarkModel()
        scores = open_gate.score(items, engine)
        self.preempting += open_gate.batches
        return scores


async def hold_bulk(
    dispatcher: Dispatcher, model: MarkModel, priority: PriorityClass = BATCH
) -> asyncio.Task[list[ItemResult]]:
    """A batch with mark 9 that is computed until the gate opens."""
    hold(model)
    task = asyncio.create_task(score(dispatcher, model, item_of(1, 1, mark=9), priority=priority))
    assert await asyncio.to_thread(model.entered.wait, 60)
    return task


async def test_online_work_is_computed_while_a_bulk_batch_is() -> None:
    model, other = LayeredModel(), MarkModel()
    async with running(LIMITS, Keeper()) as (dispatcher, recorder):
        bulk = await hold_bulk(dispatcher, model)
        for mark in range(5):
            assert scores_of(await score(dispatcher, model, item_of(5, 1, mark=mark))) == [[mark]]
        # Another model's work, too, whether or not that would stand aside itself.
        assert scores_of(await score(dispatcher, other, item_of(5, 1, mark=7), key="o")) == [[7]]
        assert not bulk.done()
        model.gate.set()
        assert scores_of(await bulk) == [[9]]
        await settle()
        assert recorder.preempting == 6
        assert model.preempting == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("model", "keeper", "priority"),
    [
        (MarkModel(), Keeper(), BATCH),  # it can't stand aside
        (LayeredModel(), None, BATCH),  # computed in this process, one batch at a time
        (LayeredModel(), Keeper(), ONLINE),  # no more urgent than what waits
    ],
)
async def test_what_does_not_stand_aside_is_waited_for(
    model: MarkModel, keeper: Keeper | None, priority: PriorityClass
) -> None:
    async with running(LIMITS, keeper) as (dispatcher, recorder):
        held = await hold_bulk(dispatcher, model, priority)
        waits = [
            asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=mark), priority=each))
            for mark, each in ((1, ONLINE), (2, BATCH))
        ]
        done, _ = await asyncio.wait(waits, timeout=0.05)
        assert not done
        model.gate.set()
        await asyncio.gather(held, *waits)
        assert recorder.preempting == 0
        assert model.computed[0] == 9


async def test_bulk_work_never_goes_between_the_layers_of_bulk_work() -> None:
    model = LayeredModel()
    async with running(LIMITS, Keeper()) as (dispatcher, _):
        bulk = await hold_bulk(dispatcher, model)
        waits = asyncio.create_task(score(dispatcher, model, item_of(5, 1), priority=BATCH))
        await score(dispatcher, model, item_of(5, 1, mark=1))
        assert not waits.done()
        model.gate.set()
        await asyncio.gather(bulk, waits)
        assert model.preempting == [[1]]


async def test_an_engine_that_ends_costs_both_batches_and_is_started_once() -> None:
    keeper = Keeper()
    both = threading.Event()

    def end(items: Sequence[EncodedItem]) -> None:
        both.set()
        keeper.end(0)

    model = LayeredModel(between=end)
    model._before = lambda items: keeper.end(0) if both.is_set() and not keeper.restores else None
    async with running(LIMITS, keeper) as (dispatcher, recorder):
        bulk = await hold_bulk(dispatcher, model)
        with pytest.raises(Unavailable, match="ask again"):
            await score(dispatcher, model, item_of(5, 1))
        assert keeper.restores == []  # not while a thread waits for its answer
        model.gate.set()
        with pytest.raises(Unavailable, match="ask again"):
            await bulk
        assert scores_of(await score(dispatcher, model, item_of(5, 1, mark=3))) == [[3]]
        assert keeper.restores == [0]
        await settle()
        assert recorder.failures == [Failure.ENGINE_LOST] * 2


async def test_an_engine_is_free_when_both_batches_are_done() -> None:
    between, may_end = threading.Event(), threading.Event()

    def late(items: Sequence[EncodedItem]) -> None:
        between.set()
        assert may_end.wait(60)

    model = LayeredModel(between=late)
    async with running(LIMITS, Keeper()) as (dispatcher, _):
        bulk = await hold_bulk(dispatcher, model)
        online = asyncio.create_task(score(dispatcher, model, item_of(5, 1)))
        assert await asyncio.to_thread(between.wait, 60)
        model.gate.set()
        await bulk  # no layer was left
        model.entered.clear()
        more = asyncio.create_task(score(dispatcher, model, item_of(5, 1), priority=BATCH))
        done, _ = await asyncio.wait([more], timeout=0.05)
        assert not done
        assert not model.entered.is_set()
        may_end.set()
        await asyncio.gather(online, more)


async def test_a_batch_between_layers_that_does_not_fit_in_memory_is_halved() -> None:
    def most(items: Sequence[EncodedItem]) -> None:
        if len(items) > 1:
            raise EngineOutOfMemory

    model = LayeredModel(between=most)
    async with running(LIMITS, Keeper()) as (dispatcher, _):
        bulk = await hold_bulk(dispatcher, model)
        items = [item_of(5, 1, mark=mark) for mark in range(4)]
        assert scores_of(await score(dispatcher, model, *items)) == [[0], [1], [2], [3]]
        model.gate.set()
        await bulk


async def test_a_batch_that_hangs_between_layers_ends_its_engine() -> None:
    keeper = Keeper()

    def hang(items: Sequence[EncodedItem]) -> None:
        assert keeper.killed.wait(60)
        raise EngineLost("killed")

    model = LayeredModel(between=hang)
    limits = dataclasses.replace(LIMITS, hang_seconds=0.01)
    async with running(limits, keeper) as (dispatcher, _):
        bulk = asyncio.create_task(score(dispatcher, model, item_of(1, 1), priority=BATCH))
        hold(model)
        assert await asyncio.to_thread(model.entered.wait, 60)
        with pytest.raises(Unavailable):
            await score(dispatcher, model, item_of(5, 1))
        model.gate.set()
        await asyncio.wait([bulk])


async def test_online_work_waits_until_a_bulk_batch_has_had_its_share() -> None:
    begun: list[float] = []

    def between(items: Sequence[EncodedItem]) -> None:
        begun.append(time.monotonic())
        time.sleep(0.1)

    model = LayeredModel(between=between)
    half = dataclasses.replace(LIMITS.batch, batch_share=0.5)
    async with running(dataclasses.replace(LIMITS, batch=half), Keeper()) as (dispatcher, _):
        asked = time.monotonic()
        bulk = await hold_bulk(dispatcher, model)
        for _ in range(3):
            await score(dispatcher, model, item_of(5, 1))
        assert not bulk.done()
        model.gate.set()
        await bulk
    for earlier, began in enumerate(begun):
        assert began - asked >= 2 * 0.1 * earlier


async def test_online_work_that_waits_as_a_bulk_batch_begins_goes_between_its_layers() -> None:
    busy, online_done = MarkModel(), threading.Event()

    def before(items: Sequence[EncodedItem]) -> None:
        if marks(items[0]) == [3]:
            assert online_done.wait(60)

    model = LayeredModel()
    model._before = before
    limits = DispatchLimits(batch=BatchLimits(max_batch_tokens=100, batch_share=0.9))
    async with running(limits, Keeper()) as (dispatcher, _):
        held = await hold_bulk(dispatcher, busy)
        first, second = (
            asyncio.create_task(score(dispatcher, model, item_of(89, 1, mark=mark), key="m"))
            for mark in (1, 2)
        )
        bulk = asyncio.create_task(
            score(dispatcher, model, item_of(5, 1, mark=3), key="m", priority=BATCH)
        )
        await settle()
        busy.gate.set()
        # The first one of them earns BATCH the right to go before the second.
        await asyncio.gather(held, first, second)
        assert not bulk.done()
        online_done.set()
        await bulk
        assert model.preempting == [[2]]


async def test_every_engine_computes_two_batches_at_a_time() -> None:
    together = threading.Barrier(3)
    model = LayeredModel(between=lambda items: together.wait(60) and None)
    async with running(LIMITS, Keeper(engines=3)) as (dispatcher, _):
        model.gate.clear()
        bulk = [
            asyncio.create_task(score(dispatcher, model, item_of(80, 15), priority=BATCH))
            for _ in range(3)
        ]
        while len(dispatcher._worker.running) < 3:  # noqa: ASYNC110 - other threads' doing
            await asyncio.sleep(0.001)
        items = [item_of(80, 15, mark=mark) for mark in range(3)]
        assert scores_of(await score(dispatcher, model, *items)) == [[0], [1], [2]]
        model.gate.set()
        await asyncio.gather(*bulk)


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_lost_or_said_twice(seed: int) -> None:
    """Calls of both classes and many sizes, engines that end under some, callers who leave."""
    draw = random.Random(seed)
    keeper = Keeper(engines=2)

    class Fragile(LayeredModel):
        def score(
            self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
        ) -> BatchScores:
            if draw.random() < 0.05 or keeper.lost(engine):
                keeper.end(engine)
            return super().score(items, engine, preempting=preempting)

    model = Fragile()
    limits = DispatchLimits(batch=BatchLimits(max_batch_tokens=100, max_batch_sequences=64))
    async with running(limits, keeper) as (dispatcher, _):
        answers = await ask_at_random(dispatcher, model, draw, 300, (ONLINE, BATCH))
        assert sum(each is True for each in answers) > 100


def make(scheduler: Scheduler, **options: object) -> Unit:
    """Add one response of 100 tokens to a model that stands aside."""
    values = {"priority": ONLINE, "deadline": None, "now": 0.0, "preemptible": True} | options
    return scheduler.add("m", item_of(0, 100), **values)  # type: ignore[arg-type]


def take(scheduler: Scheduler, now: float = 0.0, running: Batch | None = None) -> Batch:
    batch = scheduler.next_batch(now, running=running).batch
    assert batch is not None
    return batch


def test_bulk_batches_that_stand_aside_are_as_long_as_without_online_work() -> None:
    scheduler = Scheduler(BatchLimits())
    scheduler.observe("m", 4000, 1.0)
    for number in range(40):
        make(scheduler, priority=BATCH, caller=CALLERS[number % 2])
    make(scheduler)
    assert take(scheduler).tokens == 100  # ONLINE goes first
    bulk = take(scheduler)
    assert bulk.tokens == 1000  # 0.25 s
    assert bulk.preemptible
    assert not scheduler.stands_aside(bulk)
    assert scheduler.next_batch(0.0, running=bulk).batch is None
    expired = make(scheduler, deadline=1.0)
    unit = make(scheduler)
    assert scheduler.stands_aside(bulk)
    formed = scheduler.next_batch(2.0, running=bulk)
    assert formed.expired == [expired]
    assert formed.batch is not None
    assert [part.unit for part in formed.batch.parts] == [unit]
    assert not formed.batch.preemptible


def test_only_bulk_batches_stand_aside_and_what_goes_between_is_no_longer_than_others() -> None:
    """Not even where one caller has long been alone."""
    scheduler = Scheduler(BatchLimits())
    scheduler.observe("m", 4000, 1.0)
    bulk = make(scheduler, priority=BATCH)
    running = take(scheduler)
    assert [part.unit for part in running.parts] == [bulk]
    for _ in range(400):
        make(scheduler, now=1.0)
    between = take(scheduler, 100.0, running=running)
    assert between.tokens == 1000
    assert not between.preemptible
    long = take(scheduler, 100.0)
    assert long.tokens > 7000
    assert not long.preemptible
    make(scheduler, now=100.0, caller=CALLERS[1])
    assert not scheduler.stands_aside(long)


def test_online_work_rides_along_only_with_what_can_not_stand_aside() -> None:
    for preemptible in (False, True):
        scheduler = Scheduler(BatchLimits(max_batch_tokens=1000, batch_share=1 / 3))
        for priority in (ONLINE, BATCH):
            for _ in range(20):
                make(scheduler, priority=priority, preemptible=preemptible)
        scheduler.observe("m", 1000, 0.01)
        assert {part.unit.priority for part in take(scheduler).parts} == {ONLINE}
        bulk = take(scheduler)  # on credit
        wanted = [BATCH] * len(bulk.parts) if preemptible else [BATCH] * 5 + [ONLINE] * 5
        assert [part.unit.priority for part in bulk.parts] == wanted


@given(st.sampled_from([0.0, 0.2, 0.5]), st.lists(st.floats(0.001, 10), min_size=1, max_size=20))
def test_a_batch_gets_its_share_of_the_time_since_it_began(
    share: float, asides: list[float]
) -> None:
    """However much ONLINE work waits, and whatever it takes."""
    in_hand, now = BatchesInHand[None](share), 0.0
    batch = Batch[None]("m", KnownBeginnings())
    one = in_hand.begin(0, batch, None, now)
    for aside in asides:
        ((when, engine, found),) = in_hand.preemptible()
        assert (engine, found) == (0, batch)
        now = max(now, when)
        other = in_hand.begin(0, batch, 1.0, now, preempting=True)
        assert in_hand.running[0] is other.running
        assert not list(in_hand.preemptible())
        now += aside
        assert in_hand.end(0, other, now) == pytest.approx(aside)
        assert in_hand.running[0] is one.running
    ((when, _, _),) = in_hand.preemptible()
    assert when - sum(asides) == pytest.approx(share * when)
    assert in_hand.end(0, one, now + 1) == pytest.approx(now + 1 - sum(asides))
    assert not in_hand.running


def test_time_counts_once_where_a_batch_came_after_the_last_layer() -> None:
    in_hand = BatchesInHand[None](0.2)
    batch = Batch[None]("m", KnownBeginnings())
    first = in_hand.begin(0, batch, None, 0.0)
    late = in_hand.begin(0, batch, 1.0, 2.0, preempting=True)
    assert in_hand.end(0, first, 3.0) == 3.0
    assert in_hand.running == {0: late.running}
    assert not list(in_hand.preemptible())  # it has the way between layers in hand
    assert in_hand.end(0, late, 4.5) == 1.5


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.floats(0.001, 10))
def test_times_are_those_that_the_engine_has_measured(wait: float, own: float, rest: float) -> None:
    """A batch that goes between layers waits for one; the other is computed meanwhile."""
    in_hand = BatchesInHand[None](0.5)
    batch = Batch[None]("m", KnownBeginnings())
    outer = in_hand.begin(0, batch, 3.0, 0.0)
    inner = in_hand.begin(0, batch, 1.0, 0.0, preempting=True)
    assert inner.running.expected == 4.0  # before it is taken to hang
    assert in_hand.end(0, inner, wait + own, own) == own
    ((when, _, _),) = in_hand.preemptible()
    assert when == pytest.approx(2 * own)
    assert in_hand.end(0, outer, wait + own + rest) == pytest.approx(wait + rest)
