"""An engine without tensors: admission and scheduler as they stand, on simulated time.

python -m tests.scheduling.simulation      # the table in docs/scheduling.md
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field, replace

from tests.support.dispatch import item_of

from guerdon.reward.scheduling.admission import Admission, Ticket
from guerdon.reward.scheduling.in_hand import BatchesInHand, BatchInHand
from guerdon.reward.scheduling.limits import BatchLimits, QueueLimits
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Unit
from guerdon.reward.types import PriorityClass
from guerdon.serving.errors import Overloaded

ONLINE, BATCH = PriorityClass.ONLINE, PriorityClass.BATCH
MEAN_TOKENS = 200
NOISE = 0.2
"""Batches take up to so much less or more than they should."""


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """A batch of n tokens takes `overhead + n * per_token` seconds."""

    overhead: float
    per_token: float
    preemptible: bool = False
    """Whether batches of BATCH work stand aside for ONLINE work, after the layer in hand."""

    def seconds(self, tokens: float) -> float:
        return self.overhead + self.per_token * tokens

    @property
    def alone(self) -> float:
        """A mean call on an idle engine."""
        return self.seconds(MEAN_TOKENS)

    def capacity(self, limits: BatchLimits) -> float:
        """Tokens a second in the fullest batches that the limits allow."""
        timed = (limits.max_batch_seconds - self.overhead) / self.per_token
        tokens = min(limits.max_batch_tokens, max(512, timed))
        return tokens / self.seconds(tokens)


CPU = EngineTimes(overhead=0.005, per_token=1 / 4_000)
PREEMPTIBLE_CPU = replace(CPU, preemptible=True)
GPU = EngineTimes(overhead=0.008, per_token=1 / 100_000)
LAYERS = 30
"""Layers of a model: a batch that takes a second stands aside within a thirtieth of it."""


@dataclass
class Tally:
    """How the calls of a class ended, in tokens."""

    good: int = 0
    late: int = 0
    """Computed, and done after the deadline."""
    expired: int = 0
    """Dropped from the queue."""
    shed: int = 0
    seconds: list[float] = field(default_factory=list)
    """From arrival to answer, of the good ones."""


@dataclass(eq=False)
class Computing:
    """A batch that is computed until `end`, unless it stands aside meanwhile."""

    in_hand: BatchInHand[Ticket]
    took: float
    end: float


class Simulation:
    """Open-loop calls on one engine. Nobody who is shed comes back."""

    def __init__(self, times: EngineTimes, limits: BatchLimits, *, seed: int) -> None:
        self.times = times
        self.scheduler = Scheduler(limits)
        self.admission = Admission(QueueLimits(), limits)
        self.rng = random.Random(seed)
        self.tallies = {priority: Tally() for priority in PriorityClass}
        self._events: list[tuple[float, int, PriorityClass | Computing | None, float]] = []
        """Calls that arrive, with their seconds to live; batches that end; and looks for work."""
        self._order = itertools.count()
        self._in_hand = BatchesInHand[Ticket](limits.batch_share)
        self._computing: list[Computing] = []
        """At most two, the second one between the layers of the first."""

    def offer(self, priority: PriorityClass, rate: float, seconds: float, within: float) -> None:
        """Plan calls, `rate` a second in the mean, each with so many seconds to live."""
        now = 0.0
        while (now := now + self.rng.expovariate(rate)) < seconds:
            self._push(now, priority, within)

    def _push(self, now: float, what: PriorityClass | Computing | None, within: float) -> None:
        heapq.heappush(self._events, (now, next(self._order), what, within))

    def run(self, until: float = math.inf) -> dict[PriorityClass, Tally]:
        """Until a time, or until nothing is left."""
        while self._events and self._events[0][0] < until:
            now, _, what, within = heapq.heappop(self._events)
            if isinstance(what, Computing):
                if now < what.end:  # it stood aside meanwhile
                    self._push(what.end, what, 0.0)
                    continue
                self._finish(what, now)
            elif what is not None:
                self._arrive(what, now, within)
            self._begin(now)
        return self.tallies

    def _arrive(self, priority: PriorityClass, now: float, within: float) -> None:
        tokens = max(10, min(2000, int(self.rng.lognormvariate(4.98, 0.8))))  # mean 200
        try:
            ticket = self.admission.reserve(
                model_name="m",
                priority=priority,
                text_bytes=4 * tokens,
                deadline=now + within,
                now=now,
            )
            self.admission.settle(ticket, tokens, now=now)
        except Overloaded:
            self.tallies[priority].shed += tokens
            return
        self.scheduler.add(
            "m",
            item_of(0, tokens),
            priority=priority,
            deadline=now + within,
            now=now,
            owner=ticket,
            preemptible=self.times.preemptible,
        )

    def _begin(self, now: float) -> None:
        running = None
        if self._computing:
            ((when, _, running), *_) = [*self._in_hand.preemptible(), (math.inf, 0, None)]
            if running is None or not self.scheduler.stands_aside(running):
                return
            if now < when:
                self._push(when, None, 0.0)
                return
        formed = self.scheduler.next_batch(now, running=running)
        for unit in formed.expired:
            self.tallies[unit.priority].expired += unit.item.tokens
            self.admission.close(_ticket(unit))
        if formed.batch is None:
            return
        took = self.times.seconds(formed.batch.tokens) * self.rng.uniform(1 - NOISE, 1 + NOISE)
        preempting = bool(self._computing)
        in_hand = self._in_hand.begin(0, formed.batch, None, now, preempting=preempting)
        computing = Computing(in_hand, took, now + took)
        if self._computing:
            (outer,) = self._computing
            computing.end += min(outer.end - now, outer.took / LAYERS)  # what is left of a layer
            outer.end += took
        self._computing.append(computing)
        self._push(computing.end, computing, 0.0)

    def _finish(self, computing: Computing, now: float) -> None:
        self._computing.remove(computing)
        batch, took = computing.in_hand.batch, computing.took
        self._in_hand.end(0, computing.in_hand, now, took)
        self.scheduler.observe(batch.key, batch.tokens, took)
        self.admission.observe(
            "m",
            batch.tokens,
            took,
            now=now,
            preemptible=batch.preemptible,
            model_preemptible=self.times.preemptible,
        )
        for unit in (part.unit for part in batch.parts):
            self.admission.close(_ticket(unit))
            tally = self.tallies[unit.priority]
            assert unit.deadline is not None
            if now < unit.deadline:
                tally.good += unit.item.tokens
                tally.seconds.append(now - unit.arrival)
            else:
                tally.late += unit.item.tokens


def _ticket(unit: Unit) -> Ticket:
    assert isinstance(unit.owner, Ticket)
    return unit.owner


TOTAL = 800_000
"""Tokens that the engine could compute in the time for which calls are offered."""


def overloaded(times: EngineTimes, load: float, service_times: float, *, seed: int = 0) -> Tally:
    """Online calls at a multiple of the capacity, to be done within so many service times."""
    limits = BatchLimits()
    simulation, capacity = Simulation(times, limits, seed=seed), times.capacity(limits)
    rate, seconds = load * capacity / MEAN_TOKENS, TOTAL / capacity
    simulation.offer(ONLINE, rate, seconds, service_times * times.alone)
    return simulation.run()[ONLINE]


@dataclass(frozen=True)
class Online:
    """What online calls at a tenth of the capacity got, and what BATCH did beside them."""

    seconds: list[float]
    """Of each call, in order of size."""
    batch_part: float
    """Of the capacity, what BATCH work was computed."""

    def quantile(self, q: float) -> float:
        return self.seconds[int(len(self.seconds) * q)]


def online(times: EngineTimes, limits: BatchLimits, *, batch_load: float, seed: int = 0) -> Online:
    """Online calls beside so many times the engine's capacity of BATCH work."""
    simulation, capacity = Simulation(times, limits, seed=seed), times.capacity(limits)
    seconds = TOTAL / capacity
    if batch_load:
        simulation.offer(BATCH, batch_load * capacity / MEAN_TOKENS, seconds, 1e6)
    simulation.offer(ONLINE, 0.1 * capacity / MEAN_TOKENS, seconds, 60.0)
    tallies = simulation.run(until=seconds)
    tally = tallies[ONLINE]
    assert not tally.late + tally.expired + tally.shed
    return Online(sorted(tally.seconds), tallies[BATCH].good / TOTAL)


def main() -> None:
    """Print the tables: parts of what the engine could have computed, and milliseconds."""
    print("engine load deadline  in time  late  expired  shed")
    for name, times in (("CPU", CPU), ("GPU", GPU)):
        for load, service_times in itertools.product((0.5, 1, 2, 5), (2, 5, 20)):
            t = overloaded(times, load, service_times)
            parts = "  ".join(f"{x / TOTAL:6.2f}" for x in (t.good, t.late, t.expired, t.shed))
            print(f"{name} {load:4}x {service_times:4}  {parts}")
    print("online: engine, max_batch_seconds, shared_batch_seconds, p50, p99, BATCH computed")
    for name, times in (("CPU", CPU), ("CPU, preempted", PREEMPTIBLE_CPU), ("GPU", GPU)):
        alone = online(times, BatchLimits(), batch_load=0)
        print(f"{name} alone {_milliseconds(alone)}")
        for most, shared in ((math.inf, math.inf), (0.25, math.inf), (0.25, 0.06), (0.25, 0.03)):
            limits = BatchLimits(max_batch_seconds=most, shared_batch_seconds=shared)
            beside = online(times, limits, batch_load=3)
            print(f"{name} {most:4} {shared:4} {_milliseconds(beside)} {beside.batch_part:5.2f}")


def _milliseconds(found: Online) -> str:
    return "  ".join(f"{1000 * found.quantile(q):6.0f} ms" for q in (0.5, 0.99))


if __name__ == "__main__":
    main()
