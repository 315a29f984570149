"""The batches that engines compute: one each, and one between the layers of that. Pure.

A batch stands aside for ONLINE work at once, but then not again before it has had `batch_share` of
the engine's time since it began: however much ONLINE work comes, it is computed to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from guerdon.reward.scheduling.units import Batch, Owner
from guerdon.reward.scheduling.watchdog import Running


@dataclass(slots=True, eq=False)
class BatchInHand(Generic[Owner]):
    """A batch that is computed."""

    batch: Batch[Owner]
    preempting: bool
    """Whether it is computed between the layers of another."""
    running: Running
    began: float
    aside: float = 0.0
    """Seconds for which it stood aside."""


class BatchesInHand(Generic[Owner]):
    """The batches that are computed, by the number of their engine.

    Args:
        batch_share: least part of an engine's time for a batch that stands aside for others.
    """

    def __init__(self, batch_share: float) -> None:
        self._earning = batch_share / (1 - batch_share)
        self._engines: dict[int, list[BatchInHand[Owner]]] = {}
        """Each engine's in the order in which they began."""
        self.running: dict[int, Running] = {}
        """What began last on each engine. Other threads may look."""

    def begin(
        self,
        engine: int,
        batch: Batch[Owner],
        expected: float | None,
        now: float,
        *,
        preempting: bool = False,
    ) -> BatchInHand[Owner]:
        """An engine begins to compute a batch, or a part of one.

        Args:
            expected: seconds that it should take, if that is known.
            preempting: whether it goes between the layers of another.
        """
        batches = self._engines.setdefault(engine, [])
        for other in batches:  # it may have to wait for what is left of that one
            more = other.running.expected
            expected = None if expected is None or more is None else expected + more
        begun = BatchInHand(batch, preempting, Running(expected), now)
        batches.append(begun)
        self.running[engine] = begun.running
        return begun

    def end(
        self, engine: int, ended: BatchInHand[Owner], now: float, seconds: float | None = None
    ) -> float:
        """A batch is computed. Seconds that it took, without those in which another one was.

        Args:
            seconds: the same as the engine has measured it, if it has.
        """
        if seconds is None:
            seconds = max(0.0, now - ended.began - ended.aside)
        batches = self._engines[engine]
        batches.remove(ended)
        if not batches:
            del self._engines[engine], self.running[engine]
            return seconds
        for other in batches:
            self.running[engine] = other.running
            if ended.preempting:
                other.aside += seconds
            else:  # that one is computed from now on
                other.began = now
        return seconds

    def preemptible(self) -> Iterator[tuple[float, int, Batch[Owner]]]:
        """Engines that compute one batch, when that may stand aside, and the batch."""
        for engine, batches in self._engines.items():
            if len(batches) == 1 and not batches[0].preempting:
                (one,) = batches
                yield one.began + one.aside * (1 + self._earning), engine, one.batch
