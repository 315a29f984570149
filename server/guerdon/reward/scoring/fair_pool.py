"""Threads that callers share fairly: for parsing and tokenising, off the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from guerdon.reward.fair_shares import Shares
from guerdon.serving.access.identity import Caller

R = TypeVar("R")

LONG_BYTES = 256 * 1024
"""Input of a job that takes long. One thread is kept for shorter ones."""


@dataclass(slots=True, eq=False)
class _Job:
    turn: asyncio.Future[None]
    size: int
    caller: Caller
    number: int
    started: bool = False

    @property
    def long(self) -> bool:
        return self.size > LONG_BYTES


class FairPool:
    """Runs functions in threads; the caller that has had the fewest bytes goes next.

    All methods belong to one event loop.

    Args:
        threads: how many run at a time. With more than one, long jobs never have them all.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._threads = threads
        self._running = 0
        self._long_running = 0
        self._shares = Shares()
        self._waiting: dict[tuple[str, bool], deque[_Job]] = {}
        """Jobs by their caller's key, and whether they are long; none of the queues is empty."""
        self._numbers = itertools.count()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, caller: Caller, size: int, function: Callable[[], R]) -> R:
        """Run a function in a thread; who leaves does so when the thread is done with it.

        What the thread uses (a model, say) is kept by whoever called for it.

        Args:
            size: bytes of input, which its time is taken to grow with.
        """
        turn = asyncio.get_running_loop().create_future()
        job = _Job(turn, max(size, 1), caller, next(self._numbers))
        self._put(job)
        self._start_next()
        try:
            await job.turn
        except asyncio.CancelledError:
            if job.started:  # its turn came as it left
                self._end(job)
            else:
                self._drop(job)
            raise
        try:
            return await self._in_thread(function)
        finally:
            self._end(job)

    def _put(self, job: _Job) -> None:
        key = job.caller.key
        if not any((key, long) in self._waiting for long in (False, True)):
            self._shares.enter(job.caller)
        self._waiting.setdefault((key, job.long), deque()).append(job)

    def _start_next(self) -> None:
        while self._running < self._threads:
            most_long = max(1, self._threads - 1)
            heads = [
                (self._shares.served(key), jobs[0].number, jobs)
                for (key, long), jobs in self._waiting.items()
                if not long or self._long_running < most_long
            ]
            if not heads:
                return
            _, _, jobs = min(heads)
            job = jobs[0]
            self._drop(job)
            if job.turn.cancelled():
                continue
            job.started = True
            self._shares.charge(job.caller, job.size)
            self._running += 1
            self._long_running += job.long
            job.turn.set_result(None)

    def _drop(self, job: _Job) -> None:
        place = (job.caller.key, job.long)
        jobs = self._waiting.get(place)
        if jobs is None or job not in jobs:
            return  # it was cancelled, and that was noticed before
        jobs.remove(job)
        if not jobs:
            del self._waiting[place]

    def _end(self, job: _Job) -> None:
        self._running -= 1
        self._long_running -= job.long
        self._start_next()
        self._shares.forget({key for key, _ in self._waiting})

    async def _in_thread(self, function: Callable[[], R]) -> R:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def run() -> None:
            settle: Callable[[], Any]
            try:
                settle = partial(future.set_result, function())
            except BaseException as error:
                settle = partial(future.set_exception, error)
            loop.call_soon_threadsafe(settle)

        job = self._pool.submit(run)
        try:
            # A task's cancellation would end a bare future, while the thread goes on.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not job.cancel():  # it runs already; jobs are short
                await asyncio.wait({future})
                future.exception()
            raise
