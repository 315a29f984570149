"""Tells an observer what the dispatcher does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from guerdon.reward.scheduling.batch_run import BatchRun
from guerdon.reward.scheduling.events import DispatchObserver
from guerdon.reward.types import PriorityClass

logger = logging.getLogger(__name__)


class Announcer:
    """Tells an observer what happens. What the observer raises is logged and ignored.

    Args:
        count: gives the tokens and items that each class holds.
    """

    def __init__(
        self,
        observer: DispatchObserver,
        count: Callable[[], Mapping[PriorityClass, tuple[int, int]]],
    ) -> None:
        self._observer = observer
        self._count = count
        self._untold = False
        """Whether the queue has changed since the observer was told."""

    def tell(self, tell: Callable[[DispatchObserver], None]) -> None:
        """Call the observer."""
        try:
            tell(self._observer)
        except Exception:
            logger.exception("an observer failed")

    def tell_queue(self) -> None:
        """Tell of the queue soon, and once for all that changes until then: no caller waits for it.

        All classes are told together: one of now beside one of before would be a sum that
        never was.
        """
        if not self._untold:
            self._untold = True
            asyncio.get_running_loop().call_soon(self._tell_queue)

    def _tell_queue(self) -> None:
        self._untold = False
        self.tell(lambda observer: observer.queue_changed(self._count()))

    def tell_run(self, run: BatchRun) -> None:
        """Tell what became of a batch."""
        info, stats, failure = run.model.info, run.stats, run.failure
        engine = run.engine
        if stats is not None:
            self.tell(lambda observer: observer.batch_done(info, stats, run.seconds, engine))
        if run.preempting:
            self.tell(lambda observer: observer.preempted(info))
        if run.nonfinite:
            self.tell(lambda observer: observer.nonfinite(info, run.nonfinite))
        if failure is not None:
            seconds = run.seconds if stats is None else 0.0
            self.tell(lambda observer: observer.batch_failed(info, failure, seconds, engine))
