"""The thread that computes in an engine's process, which urgent batches share between layers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from guerdon.reward.engine.preemption import preemptible

T = TypeVar("T")


class ComputeThread:
    """Computes batches in one thread, since torch keeps threads for each thread that calls it.

    What is urgent is computed between the layers of the batch in hand, as far as that one is
    preemptible, or next.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="guerdon-compute")
        self._urgent: deque[Callable[[], None]] = deque()
        self._aside = 0.0
        """Seconds in which something urgent was computed."""

    def run(self, work: Callable[[], T]) -> T:
        """Compute something after what was asked for before; blocks. From any thread."""

        def standing_aside() -> T:
            with preemptible(self._run_urgent):
                return work()

        return self._pool.submit(standing_aside).result()

    def run_urgent(self, work: Callable[[], T]) -> T:
        """Compute something as soon as a layer is done; blocks. From any thread."""
        result: Future[T] = Future()

        def compute() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        self._urgent.append(compute)
        self._pool.submit(self._run_urgent)
        return result.result()

    def clock(self) -> float:
        """Seconds, on the thread: while something urgent is computed, they stop for the rest."""
        return time.monotonic() - self._aside

    def _run_urgent(self) -> None:
        """Compute what is urgent, on the thread; nothing gets between its layers."""
        with preemptible(None):
            while self._urgent:
                began = time.monotonic()
                self._urgent.popleft()()
                self._aside += time.monotonic() - began
