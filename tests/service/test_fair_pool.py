"""Threads that callers share: fair by bytes, with one kept free of long jobs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from guerdon.reward.scoring.fair_pool import LONG_BYTES, FairPool
from guerdon.serving.access.identity import Caller

GREEDY, MODEST, HEAVY = Caller(key="greedy"), Caller(key="modest"), Caller(key="heavy", share=3)


async def test_who_has_had_least_goes_next_by_its_share() -> None:
    pool, gate, order = FairPool(1), threading.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.run(Caller(key="first"), 1, gate.wait))
        await asyncio.sleep(0)
        for caller, jobs in ((GREEDY, 40), (HEAVY, 20), (MODEST, 2)):
            for _ in range(jobs):
                group.create_task(pool.run(caller, 100, lambda c=caller: order.append(c.key)))  # type: ignore[misc]
        await asyncio.sleep(0)
        gate.set()
    pool.close()
    assert order[:3] == ["greedy", "heavy", "modest"]
    assert set(order[:10]) == {"greedy", "heavy", "modest"}
    assert order.index("modest", 3) <= 8
    assert order[8:20].count("heavy") == 9  # three for each one of the other
    assert len(order) == 62


async def test_long_jobs_leave_a_thread_to_others() -> None:
    pool, gate = FairPool(2), threading.Event()
    long = [asyncio.ensure_future(pool.run(GREEDY, LONG_BYTES + 1, gate.wait)) for _ in range(3)]
    assert await pool.run(GREEDY, 10, lambda: "short") == "short"
    assert not any(job.done() for job in long)
    gate.set()
    assert await asyncio.gather(*long) == [True] * 3
    pool.close()


async def test_who_leaves_before_its_turn_takes_none_and_errors_come_back() -> None:
    pool, gate, ran = FairPool(1), threading.Event(), list[int]()
    running = asyncio.ensure_future(pool.run(GREEDY, 1, gate.wait))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(pool.run(GREEDY, 1, lambda: ran.append(1))) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.set()  # and the turn of the first may come before it notices
    await asyncio.wait({running, *waiting})
    assert ran == [1, 1]

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await pool.run(MODEST, 1, fail)
    assert await pool.run(MODEST, 1, lambda: 7) == 7
    pool.close()
