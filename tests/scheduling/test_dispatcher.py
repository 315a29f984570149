"""The dispatcher through its public door, with models that compute marks instead of rewards."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.support.dispatch import Keeper, MarkModel, Recorder, item_of

from guerdon.reward.scheduling.admission import Ticket
from guerdon.reward.scheduling.calls import ItemResult
from guerdon.reward.scheduling.dispatcher import Dispatcher
from guerdon.reward.scheduling.events import DropReason, DropStage, Failure
from guerdon.reward.scheduling.limits import BatchLimits, DispatchLimits, QueueLimits
from guerdon.reward.scheduling.watchdog import Running, Watchdog, allowed_seconds
from guerdon.reward.types import (
    BatchScores,
    DeviceLost,
    EncodedItem,
    EngineKeeper,
    EngineLost,
    EngineOutOfMemory,
    PriorityClass,
    RewardModel,
)
from guerdon.serving.errors import (
    ComputeFailed,
    DeadlinePassed,
    Overloaded,
    ServiceError,
    TooLarge,
    Unavailable,
)

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
SMALL = DispatchLimits(batch=BatchLimits(max_batch_tokens=100, max_batch_sequences=64))


@asynccontextmanager
async def running(
    limits: DispatchLimits = SMALL, keeper: EngineKeeper | None = None
) -> AsyncIterator[tuple[Dispatcher, Recorder]]:
    recorder = Recorder()
    dispatcher = Dispatcher(limits=limits, observer=recorder, keeper=keeper)
    dispatcher.start()
    try:
        yield dispatcher, recorder
    finally:
        assert await dispatcher.stop(grace=10)
        # Whatever a test did, nothing is left behind.
        assert all(pair == (0, 0) for pair in recorder.queue.values())


async def score(
    dispatcher: Dispatcher,
    model: RewardModel,
    *items: EncodedItem,
    key: str = "k",
    within: float | None = None,
    priority: PriorityClass = ONLINE,
) -> list[ItemResult]:
    deadline = None if within is None else time.monotonic() + within
    size = 3 * sum(item.tokens for item in items)
    with dispatcher.reserve(
        model_name=key, priority=priority, text_bytes=size, deadline=deadline
    ) as reservation:
        return await dispatcher.score(reservation, key, model, items)


def scores_of(results: list[ItemResult]) -> list[list[float]]:
    return [[score.score for score in result.scores] for result in results]


async def entered(model: MarkModel) -> None:
    """Until a batch is in the model's hands."""
    assert await asyncio.to_thread(model.entered.wait, 30)


async def settle() -> None:
    """Let tasks that were just made run up to their first wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def hold(model: MarkModel) -> None:
    """Stop the model's next batch at its door."""
    model.entered.clear()
    model.gate.clear()


async def hold_busy(dispatcher: Dispatcher, model: MarkModel) -> asyncio.Task[list[ItemResult]]:
    """Keep the engine busy with mark 999 until the gate opens."""
    hold(model)
    task = asyncio.create_task(score(dispatcher, model, item_of(1, 1, mark=999), key="busy"))
    await entered(model)
    return task


async def ask_at_random(
    dispatcher: Dispatcher,
    model: RewardModel,
    draw: random.Random,
    count: int,
    priorities: Sequence[PriorityClass] = (ONLINE,),
) -> list[bool | BaseException]:
    """Ask at once for so many calls of random sizes, and cancel a tenth of them.

    Returns:
        Of each call whether it was scored, and rightly, or else told to ask again; or that it was
        cancelled.
    """

    async def call(mark: int) -> bool:
        sizes = [draw.randint(1, 30) for _ in range(draw.randint(1, 5))]
        item = item_of(draw.randint(0, 60), *sizes, mark=mark)
        try:
            found = await score(dispatcher, model, item, priority=draw.choice(priorities))
        except Unavailable:
            return False
        assert scores_of(found) == [[mark + place for place in range(len(sizes))]]
        return True

    calls = [asyncio.create_task(call(10 * number)) for number in range(count)]
    await settle()
    for task in draw.sample(calls, count // 10):
        task.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, (bool, asyncio.CancelledError)) for each in answers)
    return answers


async def test_scores_come_back_in_order_also_from_many_batches() -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        items = [item_of(30, *[20] * 7, mark=10), item_of(5, 1, mark=50), item_of(80, 9, mark=60)]
        results = await score(dispatcher, model, *items)
        assert scores_of(results) == [[10, 11, 12, 13, 14, 15, 16], [50], [60]]
        await settle()  # observers are told after the callers
        assert len(model.batches) == len(recorder.batches) >= 3
        assert sorted(model.computed) == [10, 11, 12, 13, 14, 15, 16, 50, 60]
        assert all(r.queue_seconds >= 0 and r.compute_seconds > 0 for r in results)


async def test_what_arrives_during_a_batch_is_the_next_batch() -> None:
    model = MarkModel()
    batches = BatchLimits(max_batch_seconds=math.inf)
    async with running(DispatchLimits(batch=batches)) as (dispatcher, _):
        busy = await hold_busy(dispatcher, model)
        calls = [
            asyncio.create_task(score(dispatcher, model, item_of(9, 1, mark=n))) for n in range(64)
        ]
        await settle()
        model.gate.set()
        assert [scores_of(r) for r in await asyncio.gather(*calls)] == [[[n]] for n in range(64)]
        await busy
        assert [len(batch) for batch in model.batches] == [1, 64]


async def test_no_batch_mixes_revisions_and_idle_says_when_one_is_unused() -> None:
    old, new = MarkModel(value=lambda mark: mark), MarkModel(value=lambda mark: -mark)
    async with running() as (dispatcher, _):
        calls = []
        for n in range(1, 200):
            model, key = ((old, "old"), (new, "new"))[n >= 100]
            calls.append(
                asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=n), key=key))
            )
        await settle()
        await dispatcher.idle("old")
        assert sorted(old.computed) == list(range(1, 100))
        results = [scores_of(r) for r in await asyncio.gather(*calls)]
        assert results == [[[n if n < 100 else -n]] for n in range(1, 200)]
        await dispatcher.idle("unknown")


@pytest.mark.parametrize("error", [RuntimeError("secret path /x"), SystemExit(3)])
async def test_an_exception_fails_its_batch_alone_and_reveals_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(items: Sequence[EncodedItem]) -> None:
        if any(int(item.suffixes[0][0]) == 13 for item in items):
            raise error

    model, other = MarkModel(before=fail), MarkModel()
    async with running() as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, other)
        bad = [
            asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=n))) for n in (12, 13)
        ]
        good = asyncio.create_task(score(dispatcher, other, item_of(5, 1, mark=7), key="other"))
        await settle()
        other.gate.set()
        for task in bad:
            with pytest.raises(ComputeFailed) as caught:
                await task
            assert "secret" not in str(caught.value)
        assert scores_of(await good) == [[7]]
        await busy
        assert scores_of(await score(dispatcher, model, item_of(5, 1, mark=14))) == [[14]]
        assert recorder.failures == [Failure.EXCEPTION]
        assert dispatcher.ready
    assert repr(error)[:6] in caplog.text
    assert "Traceback" in caplog.text


async def test_a_model_that_gives_too_few_scores_is_an_error_not_a_shift_of_scores() -> None:
    class Short(MarkModel):
        def score(self, items, engine=0, **options):  # type: ignore[no-untyped-def]
            scores = super().score(items)
            scores.items[0].pop()
            return scores

    async with running() as (dispatcher, _):
        with pytest.raises(ComputeFailed):
            await score(dispatcher, Short(), item_of(5, 1, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_score_that_is_not_finite_fails_the_request_that_has_it(value: float) -> None:
    model = MarkModel(value=lambda mark: value if mark == 1 else float(mark))
    async with running() as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, model)
        tasks = [
            asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=n))) for n in range(3)
        ]
        await settle()
        model.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], ComputeFailed)
        assert [scores_of(r) for r in (results[0], results[2])] == [[[0]], [[2]]]  # type: ignore[arg-type]
        await busy
        assert len(model.batches) == 2
        assert recorder.nonfinites == 1
        assert recorder.failures == [Failure.NONFINITE]


def out_of_memory_above(tokens: int) -> Callable[[Sequence[EncodedItem]], None]:
    def check(items: Sequence[EncodedItem]) -> None:
        if sum(item.tokens for item in items) > tokens:
            raise EngineOutOfMemory

    return check


async def test_out_of_memory_splits_the_batch_down_to_what_fits() -> None:
    model = MarkModel(before=out_of_memory_above(30))
    async with running() as (dispatcher, recorder):
        items = [item_of(9, 1, mark=n) for n in range(5)] + [item_of(10, 6, 6, 6, 6, mark=10)]
        assert scores_of(await score(dispatcher, model, *items)) == [
            [0],
            [1],
            [2],
            [3],
            [4],
            [10, 11, 12, 13],
        ]
        assert sorted(model.computed) == [0, 1, 2, 3, 4, 10, 11, 12, 13]
        assert set(recorder.failures) == {Failure.OUT_OF_MEMORY}


async def test_who_leaves_while_memory_runs_out_is_left_out_of_the_second_try() -> None:
    model = MarkModel(before=out_of_memory_above(15))
    async with running() as (dispatcher, _):
        busy = await hold_busy(dispatcher, model)
        leaving, staying = (
            asyncio.create_task(score(dispatcher, model, item_of(9, 1, mark=n))) for n in (1, 2)
        )
        await settle()
        model.entered.clear()

        real = model.gate
        model.gate = threading.Event()  # for the next batch
        real.set()
        await entered(model)
        leaving.cancel()
        await asyncio.wait([leaving])
        model.gate.set()
        assert scores_of(await staying) == [[2]]
        await busy
        assert model.computed == [999, 2]


async def test_one_response_that_never_fits_in_memory_fails_alone() -> None:
    model = MarkModel(before=out_of_memory_above(30))
    async with running() as (dispatcher, _):
        busy = await hold_busy(dispatcher, model)
        large = asyncio.create_task(score(dispatcher, model, item_of(39, 1)))
        small = asyncio.create_task(score(dispatcher, model, item_of(9, 1, mark=5)))
        await settle()
        model.gate.set()
        with pytest.raises(ComputeFailed, match="memory"):
            await large
        assert scores_of(await small) == [[5]]
        await busy


async def test_work_that_is_cancelled_or_expires_in_the_queue_is_never_computed() -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, model)
        cancelled = asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=1)))
        expiring = asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=2), within=0.05))
        kept = asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=3)))
        await settle()
        cancelled.cancel()
        with pytest.raises(DeadlinePassed):  # although the engine is still held
            await expiring
        assert not model.gate.is_set()
        model.gate.set()
        assert scores_of(await kept) == [[3]]
        await busy
        assert cancelled.cancelled()
        assert model.computed == [999, 3]
        assert sorted(recorder.drops, key=str) == [
            (DropReason.CANCELLED, DropStage.QUEUED),
            (DropReason.EXPIRED, DropStage.QUEUED),
        ]


async def test_a_deadline_that_passes_during_compute_is_answered_at_once() -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        hold(model)
        late = asyncio.create_task(score(dispatcher, model, item_of(5, 1), within=0.1))
        await entered(model)
        with pytest.raises(DeadlinePassed):
            await late
        assert not model.gate.is_set()
        model.gate.set()
        await dispatcher.idle("k")
        assert recorder.drops == [(DropReason.EXPIRED, DropStage.COMPUTING)]


async def test_the_rest_of_a_split_item_is_dropped_when_its_caller_leaves() -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        hold(model)
        task = asyncio.create_task(score(dispatcher, model, item_of(50, 50, 50, 50, mark=1)))
        await entered(model)
        task.cancel()
        await asyncio.wait([task])
        model.gate.set()
        await dispatcher.idle("k")
        assert model.computed == [1]
        assert recorder.drops == [(DropReason.CANCELLED, DropStage.QUEUED)]


async def test_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, model)
        waiting = [
            asyncio.create_task(score(dispatcher, model, item_of(50, 1, mark=n))) for n in range(5)
        ]
        reserved = dispatcher.reserve(
            model_name="k", priority=ONLINE, text_bytes=9, deadline=None
        )  # still being tokenised
        await settle()
        stopping = asyncio.create_task(dispatcher.stop(grace=30))
        await settle()
        assert not dispatcher.ready
        with pytest.raises(Unavailable, match="shutting down"):
            await score(dispatcher, model, item_of(5, 1))
        model.gate.set()
        with reserved:
            last = await dispatcher.score(reserved, "k", model, [item_of(2, 1, mark=77)])
        assert scores_of(last) == [[77]]
        assert [scores_of(r) for r in await asyncio.gather(*waiting)] == [[[n]] for n in range(5)]
        assert await stopping
        await busy
        assert recorder.engine == [True, False]


async def test_stop_does_not_wait_for_ever() -> None:
    model = MarkModel()
    async with running() as (dispatcher, _):
        busy = await hold_busy(dispatcher, model)
        queued = asyncio.create_task(score(dispatcher, model, item_of(5, 1)))
        await settle()
        assert not await dispatcher.stop(grace=0.05)  # the model may not be closed yet
        for task in (busy, queued):
            with pytest.raises(Unavailable):
                await task
        model.gate.set()
        assert await dispatcher.stop(grace=10)
        assert model.computed == [999]


def broken_item(error: BaseException) -> EncodedItem:
    """Two responses that do not fit in one batch, and cannot be taken apart."""

    class Broken(EncodedItem):
        def part(self, start: int, stop: int) -> EncodedItem:
            raise error

    plain = item_of(50, 50, 50)
    return Broken(plain.prefix, plain.suffixes, plain.truncated)


async def test_an_error_of_one_requests_data_does_not_end_the_engines_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        for _ in range(3):
            busy = await hold_busy(dispatcher, model)
            items = (broken_item(MemoryError("no room for a part")), item_of(5, 1), item_of(0, 1))
            tasks = [asyncio.create_task(score(dispatcher, model, item)) for item in items]
            leaving = asyncio.create_task(score(dispatcher, model, item_of(5, 1)))
            await settle()
            leaving.cancel()
            model.gate.set()
            await busy
            for task in tasks:  # they may be asked again: nothing of them was lost for good
                with pytest.raises(Unavailable, match="ask again"):
                    await task
            assert dispatcher.ready
            assert scores_of(await score(dispatcher, model, item_of(5, 1, 2, mark=8))) == [[8, 9]]
            await dispatcher.idle("k")
        assert recorder.engine == [True]
    assert "no room for a part" in caplog.text


@pytest.mark.parametrize("wrong", [None, "1.0", object()])
async def test_scores_that_are_no_numbers_fail_their_batch_alone(wrong: object) -> None:
    model = MarkModel(value=lambda mark: wrong if mark == 1 else float(mark))  # type: ignore[arg-type,return-value]
    async with running() as (dispatcher, recorder):
        with pytest.raises(ComputeFailed):
            await score(dispatcher, model, item_of(5, 1, mark=1))
        assert scores_of(await score(dispatcher, model, item_of(5, 1, mark=2))) == [[2]]
        assert recorder.failures == [Failure.EXCEPTION]
        assert recorder.engine == [True]


@pytest.mark.parametrize("away", [1e9, 1e20, 1e300, math.inf])
async def test_a_deadline_however_far_ends_no_thread(away: float) -> None:
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        for mark in range(3):  # from the second on, the pace is known
            deadline = time.monotonic() + away
            with dispatcher.reserve(
                model_name="k", priority=ONLINE, text_bytes=9, deadline=deadline
            ) as reservation:
                result = await dispatcher.score(reservation, "k", model, [item_of(5, 1, mark=mark)])
            assert scores_of(result) == [[mark]]
        assert recorder.engine == [True]


async def test_when_the_engine_thread_dies_all_callers_hear_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = broken_item(SystemExit("no room for a part"))
    model = MarkModel()
    async with running() as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, model)
        tasks = [
            asyncio.create_task(score(dispatcher, model, item)) for item in (broken, item_of(5, 1))
        ]
        await settle()
        model.gate.set()
        await busy
        for task in tasks:
            with pytest.raises(Unavailable, match="engine has stopped"):
                await task
        assert not dispatcher.ready
        assert recorder.engine == [True, False]
        with pytest.raises(Unavailable, match="engine has stopped"):
            await score(dispatcher, model, item_of(5, 1))
        await dispatcher.idle("k")
    assert "no room for a part" in caplog.text


async def test_a_lost_device_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    """Every later batch would fail, of any model, while the server called itself ready."""

    def lose(items: Sequence[EncodedItem]) -> None:
        raise DeviceLost("cuda:0 failed: an illegal memory access")

    async with running() as (dispatcher, recorder):
        with pytest.raises(Unavailable, match="engine has stopped"):
            await score(dispatcher, MarkModel(before=lose), item_of(5, 1))
        await settle()  # observers are told after the callers
        assert not dispatcher.ready
        assert recorder.engine == [True, False]
    assert "illegal memory access" in caplog.text


async def test_a_batch_that_hangs_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    model = MarkModel()
    limits = DispatchLimits(batch=SMALL.batch, hang_seconds=0.01)
    async with running(limits) as (dispatcher, recorder):
        for mark in range(3):
            await score(dispatcher, model, item_of(9, 1, mark=mark))
        hung = await hold_busy(dispatcher, model)
        waiting = asyncio.create_task(score(dispatcher, model, item_of(5, 1)))
        for task in (hung, waiting):
            with pytest.raises(Unavailable, match="engine has stopped"):
                await task
        assert not dispatcher.ready
        assert recorder.engine == [True, False]
        assert not await dispatcher.stop(grace=0.01), "a thread still computes in the model"
        model.gate.set()
    assert "taken far longer than it should" in caplog.text


async def test_an_engine_that_ends_costs_its_batch_alone() -> None:
    keeper = Keeper()
    model = MarkModel()
    ends = MarkModel(before=lambda items: keeper.end(0))
    async with running(keeper=keeper) as (dispatcher, recorder):
        busy = await hold_busy(dispatcher, model)
        lost = asyncio.create_task(score(dispatcher, ends, item_of(5, 1), key="ends"))
        waits = asyncio.create_task(score(dispatcher, model, item_of(5, 1, mark=7)))
        await settle()
        model.gate.set()
        await busy
        with pytest.raises(Unavailable, match="the engine ended while it computed"):
            await lost
        assert scores_of(await waits) == [[7]]
        await settle()
        assert keeper.restores == [0]
        assert recorder.engine == [True, False, True]
        assert recorder.failures == [Failure.ENGINE_LOST]
        assert dispatcher.ready
        assert not recorder.ended


async def test_an_engine_that_ends_while_idle_is_started_at_once() -> None:
    keeper = Keeper()
    async with running(keeper=keeper) as (dispatcher, recorder):
        keeper.ended.add(0)
        dispatcher.engine_ended(0)
        while recorder.engine != [True, False, True]:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.001)
        dispatcher.engine_ended(0)  # told again, of the one before
        await score(dispatcher, MarkModel(), item_of(5, 1))
        assert keeper.restores == [0]


async def test_an_engine_that_can_not_be_started_again_ends_the_server() -> None:
    keeper = Keeper()
    keeper.gone = True
    async with running(keeper=keeper) as (dispatcher, recorder):
        with pytest.raises(Unavailable):
            await score(dispatcher, MarkModel(before=lambda items: keeper.end(0)), item_of(5, 1))
        while not recorder.ended:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.001)
        assert not dispatcher.ready
        assert recorder.engine[-1] is False
        with pytest.raises(Unavailable, match="engine has stopped"):
            await score(dispatcher, MarkModel(), item_of(5, 1))
        await settle()


async def test_a_batch_that_hangs_ends_an_engine_that_can_be_started_again() -> None:
    def hang(items: Sequence[EncodedItem]) -> None:
        assert keeper.killed.wait(60)
        raise EngineLost("killed")

    hangs = MarkModel(before=hang)
    keeper = Keeper()
    limits = DispatchLimits(batch=SMALL.batch, hang_seconds=0.01)
    async with running(limits, keeper) as (dispatcher, recorder):
        with pytest.raises(Unavailable, match="ask again"):
            await score(dispatcher, hangs, item_of(5, 1))
        assert scores_of(await score(dispatcher, MarkModel(), item_of(5, 1, mark=3))) == [[3]]
        assert keeper.restores
        assert not recorder.ended


async def test_engines_compute_side_by_side() -> None:
    together = threading.Barrier(3)
    model = MarkModel(before=lambda items: together.wait(60) and None)
    async with running(keeper=Keeper(engines=3)) as (dispatcher, recorder):
        # No batch ends before two more are computed, though all came in one call.
        items = [item_of(80, 15, mark=mark) for mark in range(6)]
        found = await score(dispatcher, model, *items)
        assert scores_of(found) == [[mark] for mark in range(6)]
        await settle()
        assert len(recorder.batches) == 6


async def test_while_one_engine_is_away_another_goes_on() -> None:
    keeper = Keeper(engines=2)
    keeper.may_restore.clear()
    async with running(keeper=keeper) as (dispatcher, recorder):
        keeper.ended.add(0)
        dispatcher.engine_ended(0)
        for mark in range(20):
            found = await score(dispatcher, MarkModel(), item_of(5, 1, mark=mark))
            assert scores_of(found) == [[mark]]
        await settle()
        assert not keeper.restores
        assert {engine for engine, up in recorder.engines.items() if up} == {1}
        keeper.may_restore.set()
        while not recorder.engines[0]:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.001)


async def test_an_engine_that_is_gone_for_good_leaves_the_others() -> None:
    keeper = Keeper(engines=2)
    keeper.gone = True
    async with running(keeper=keeper) as (dispatcher, recorder):
        keeper.ended.add(1)
        dispatcher.engine_ended(1)
        for mark in range(20):
            await score(dispatcher, MarkModel(), item_of(5, 1, mark=mark))
        assert dispatcher.ready
        keeper.ended.add(0)
        dispatcher.engine_ended(0)
        while not recorder.ended:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.001)
        assert not dispatcher.ready


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_lost_or_said_twice_by_engines_that_end(seed: int) -> None:
    """Calls of many sizes, engines that end under some batches, and callers who leave."""
    draw = random.Random(seed)
    keeper = Keeper(engines=3)

    class Fragile(MarkModel):
        def score(
            self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
        ) -> BatchScores:
            if draw.random() < 0.1:
                keeper.end(engine)
            return super().score(items)

    model = Fragile()
    async with running(keeper=keeper) as (dispatcher, _):
        answers = await ask_at_random(dispatcher, model, draw, 200)
        lost = sum(each is False for each in answers)
        assert bool(lost) == bool(keeper.restores)
        assert sum(each is True for each in answers) > 50


@pytest.mark.parametrize(
    ("expected", "allowed"), [(None, 600.0), (0.1, 60.0), (3.0, 60.0), (30.0, 600.0)]
)
def test_a_batch_may_take_a_multiple_of_what_is_foreseen(
    expected: float | None, allowed: float
) -> None:
    assert allowed_seconds(expected, 60.0) == allowed


def test_a_process_that_was_stopped_is_not_taken_to_hang() -> None:
    """SIGSTOP, or a machine that sleeps: the clock goes on, and the batch does not."""
    batch = Running(expected=0.1)

    def looks(times: Sequence[float]) -> bool:
        watchdog = Watchdog(least=0.08)
        return any(watchdog.hangs(batch, now) for now in times)

    assert not looks([0.0, 3600.0, 7200.0])
    assert not looks([step / 100 for step in range(150)])
    assert looks([step / 100 for step in range(250)])


async def test_before_the_start_nothing_is_accepted() -> None:
    dispatcher = Dispatcher(limits=SMALL, observer=Recorder())
    with pytest.raises(Unavailable, match="starting"):
        dispatcher.reserve(model_name="k", priority=ONLINE, text_bytes=9, deadline=None)


async def test_a_response_longer_than_a_batch_is_computed_alone() -> None:
    model = MarkModel()
    async with running() as (dispatcher, _):
        results = await score(
            dispatcher, model, item_of(5, 1, mark=1), item_of(50, 10, 451, 20, mark=10)
        )
        assert scores_of(results) == [[1], [10, 11, 12]]
        assert [11] in model.batches


async def test_only_what_can_never_fit_the_queue_is_too_large() -> None:
    limits = DispatchLimits(batch=SMALL.batch, queue=QueueLimits(max_queued_tokens=500))
    model = MarkModel()
    async with running(limits) as (dispatcher, _):
        assert scores_of(await score(dispatcher, model, item_of(300, 100, mark=3))) == [[3]]
        with pytest.raises(TooLarge, match="max_queued_tokens"):
            await score(dispatcher, model, item_of(300, 101))  # one caller never fills it all


async def test_running_out_of_memory_is_remembered() -> None:
    model = MarkModel(before=out_of_memory_above(30))
    async with running() as (dispatcher, recorder):
        calls = [item_of(9, 1, mark=n) for n in range(100)]
        results = await score(dispatcher, model, *calls)
        assert scores_of(results) == [[n] for n in range(100)]
        await settle()
        # 100 tokens did not fit, then 50; afterwards 25 do: 48 tries more would fail else.
        assert 2 <= len(recorder.failures) <= 6


async def test_at_overload_memory_is_bounded_and_every_caller_gets_an_answer() -> None:
    queue = QueueLimits(max_queued_tokens=1000, max_text_bytes=10_000)
    limits = DispatchLimits(batch=SMALL.batch, queue=queue)
    everyone_asked = threading.Event()
    model = MarkModel(before=lambda items: everyone_asked.wait())
    answers: list[list[list[float]] | ServiceError] = []

    async def caller(dispatcher: Dispatcher, number: int) -> None:
        priority = (ONLINE, BATCH)[number % 2]
        try:
            result = await score(
                dispatcher, model, item_of(19, 1, mark=number), within=60, priority=priority
            )
            assert scores_of(result) == [[number]]
            answers.append(scores_of(result))
        except (Overloaded, DeadlinePassed) as error:
            answers.append(error)
            if len(answers) == 456:
                everyone_asked.set()

    async with running(limits) as (dispatcher, recorder):
        async with asyncio.TaskGroup() as group:
            for number in range(500):
                group.create_task(caller(dispatcher, number))
        assert 500 <= recorder.most_tokens <= 1000
        shed = [answer for answer in answers if isinstance(answer, Overloaded)]
        assert len(shed) == len(recorder.sheds) == 456
        assert all(error.retry_after > 0 for error in shed)
        done = [answer for answer in answers if isinstance(answer, list)]
        # 880 tokens: one caller leaves an eighth of the room to others.
        assert len(done) == len(model.computed) == 44
        assert len(answers) == 500
        # Room again: the books did not leak.
        await score(dispatcher, model, item_of(49, *[1] * 50, mark=1000))


async def test_all_classes_are_told_together() -> None:
    """Room that passes from one class to another is told once, and not as a sum over the bound."""
    limits = DispatchLimits(queue=QueueLimits(max_queued_tokens=1000, bytes_per_token=1))
    async with running(limits) as (dispatcher, recorder):

        def reserve(priority: PriorityClass, tokens: int) -> Ticket:
            return dispatcher.reserve(
                model_name="k", priority=priority, text_bytes=tokens, deadline=None
            )

        for first, then in ((BATCH, ONLINE), (ONLINE, BATCH)):
            held = [reserve(first, 100) for _ in range(6)]
            await asyncio.sleep(0)
            assert recorder.queue[first] == (600, 0)
            for reservation in held:
                reservation.close()
            held = [reserve(then, 100) for _ in range(6)]
            await asyncio.sleep(0)
            assert recorder.queue[then] == (600, 0)
            for reservation in held:
                reservation.close()
        assert recorder.most_tokens == 600


async def test_an_observer_that_fails_costs_nobody_a_score() -> None:
    class Failing(Recorder):
        def queue_changed(self, queue: Mapping[PriorityClass, tuple[int, int]]) -> None:
            raise RuntimeError("observer")

    dispatcher = Dispatcher(limits=SMALL, observer=Failing())
    logging.getLogger("guerdon.reward.scheduling.announcer").setLevel(logging.CRITICAL)
    try:
        dispatcher.start()
        assert scores_of(await score(dispatcher, MarkModel(), item_of(5, 1, mark=4))) == [[4]]
        assert await dispatcher.stop(grace=10)
    finally:
        logging.getLogger("guerdon.reward.scheduling.announcer").setLevel(logging.NOTSET)
