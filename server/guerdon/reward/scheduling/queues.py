"""The queues of the scheduler: by class, by model, and by caller.

Pure, like `guerdon.reward.scheduling.scheduler`, which owns them and says which goes next.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic

from guerdon.reward.fair_shares import Shares
from guerdon.reward.scheduling.limits import BatchLimits, Budgets, Room
from guerdon.reward.scheduling.units import Batch, BatchPart, LazyHeap, Owner, Unit
from guerdon.reward.types import PriorityClass

MAX_SKIPPED = 64
"""Units that one batch may skip over: it bounds the work of `next_batch`."""

LIGHT_SECONDS = 1.0
"""How long batches are kept short after the last call of those for whom they are."""
LONE_SECONDS = 60.0
"""How long work must have been lone until its batches may take longer."""


class LoneWork:
    """Whether all that came of late is one caller's, for one model, of one class, and can wait.

    Args:
        patience: seconds; work with a nearer deadline than that can't wait.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._kind: tuple[PriorityClass, str, str] | None = None
        self._other_came = -math.inf

    def note(self, unit: Unit[Owner], now: float) -> None:
        """Work comes."""
        kind = (unit.priority, unit.key, unit.caller.key)
        urgent = unit.due < unit.arrival + self._patience
        if urgent or self._kind not in (None, kind):
            self._other_came = now
        self._kind = kind

    def lasts(self, now: float) -> bool:
        """Whether it has been so for long enough, or since the first work."""
        return now >= self._other_came + LONE_SECONDS


class CallerQueue(Generic[Owner]):
    """The units of one caller that wait for one model."""

    def __init__(self) -> None:
        self._waiting = LazyHeap[Owner]()
        self._skipped: list[Unit[Owner]] = []
        """Units that go first, in this order. At most `MAX_SKIPPED` and one split unit."""

    def add(self, unit: Unit[Owner]) -> None:
        """Take in a unit."""
        self._waiting.push(unit.due, unit)

    def forget(self, unit: Unit[Owner]) -> None:
        """Note that a unit in here waits no more."""
        if unit.skipped:
            self._skipped.remove(unit)
        else:
            self._waiting.forget()

    def first(self) -> Unit[Owner] | None:
        """The unit that goes next."""
        return self._skipped[0] if self._skipped else self._waiting.peek()

    def pop(self) -> None:
        """Remove what `first` gave."""
        if self._skipped:
            self._skipped.pop(0).skipped = False
        else:
            self._waiting.pop()

    def put_back(self, units: list[Unit[Owner]]) -> None:
        """Units that were skipped over: they go first from now on."""
        for unit in units:
            unit.skipped = True
        self._skipped = units + self._skipped

    def due(self) -> float:
        """When the most urgent unit is due; infinite without one."""
        waiting = self._waiting.peek()
        dues = [unit.due for unit in self._skipped]
        return min([*dues, waiting.due] if waiting is not None else dues, default=math.inf)


class ModelQueue(Generic[Owner]):
    """The units of one model in one class: a queue for each caller."""

    def __init__(self, first: Unit[Owner], budgets: Budgets, shares: Shares) -> None:
        self.key = first.key
        self.cache_tokens = first.cache_tokens
        """Tokens that the model's prefix cache holds."""
        self.preemptible = first.preemptible
        """Whether the model's batches stand aside for others."""
        self._budgets = budgets
        self._shares = shares
        self._callers: dict[str, CallerQueue[Owner]] = {}
        """Queues by the caller's key; only those in which something waits."""
        self.tokens = 0
        """Tokens that wait."""

    def add(self, unit: Unit[Owner]) -> None:
        """Take in a unit."""
        self._callers.setdefault(unit.caller.key, CallerQueue()).add(unit)
        self.tokens += unit.tokens

    def forget(self, unit: Unit[Owner]) -> None:
        """Note that a unit in here waits no more."""
        self.tokens -= unit.tokens
        self._callers[unit.caller.key].forget(unit)
        self._close(unit.caller.key)

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._callers

    def due(self) -> float:
        """When the most urgent unit is due; the queue is not empty."""
        return min(waiting.due() for waiting in self._callers.values())

    def first_cost(self) -> int:
        """Tokens that the first unit would take in an empty batch."""
        _, _, _, unit = min(self._turn(key) for key in self._callers)
        return _cut(unit, self._budgets.room(self.key))[1]

    def take(
        self, batch: Batch[Owner], credit: float, now: float, room: Room, shared: float
    ) -> list[BatchPart[Owner]]:
        """Move units into the batch while there is room, credit, and time for those in it.

        Each next unit is of the caller that has had least. On credit they go strictly in
        order: if others could overtake the first unit, they would spend what it must gather.
        Else a unit that does not fit is skipped over.

        Args:
            room: what the batch may hold.
            shared: seconds of which it may take half once it holds all the work of one caller
                and others wait.
        """
        parts: list[BatchPart[Owner]] = []
        misfits: list[Unit[Owner]] = []
        for part in batch.parts:
            room = _in_time(room, part.unit, batch, now)
        turns = [self._turn(key) for key in self._callers]
        heapq.heapify(turns)
        while turns and len(misfits) < MAX_SKIPPED and _has_room(batch, room):
            served, _, _, unit = turns[0]
            stop, tokens = _cut(unit, room)
            fits = _fits(unit, batch, room, tokens)
            if tokens > credit or (credit < math.inf and not fits):
                break
            waiting = self._callers[unit.caller.key]
            waiting.pop()
            if fits:
                credit -= tokens
                self._shares.charge(unit.caller, tokens)
                self.tokens -= unit.tokens
                parts.append(_place(unit, batch, stop, tokens))
                self.tokens += unit.tokens
                room = _in_time(room, unit, batch, now)
            if unit.queued:  # skipped over, or the rest of a split unit: it begins the next batch
                misfits.append(unit)
            # Who is skipped over waits for its turn as if it had been served, but is not charged.
            following = waiting.first()
            if following is None:
                heapq.heappop(turns)
                if turns and not unit.queued:
                    room = room.shared(shared / 2)
            else:
                had = served + tokens / unit.caller.share
                heapq.heapreplace(turns, (had, following.due, following.order, following))
        self._put_back(misfits)
        return parts

    def _turn(self, key: str) -> tuple[float, float, int, Unit[Owner]]:
        """What the next unit of a caller is ordered by, and the unit."""
        unit = self._callers[key].first()
        assert unit is not None
        return self._shares.served(key), unit.due, unit.order, unit

    def _put_back(self, misfits: list[Unit[Owner]]) -> None:
        by_caller: dict[str, list[Unit[Owner]]] = {}
        for unit in misfits:
            by_caller.setdefault(unit.caller.key, []).append(unit)
        for key, units in by_caller.items():
            self._callers[key].put_back(units)
        for key in list(self._callers):
            self._close(key)

    def _close(self, key: str) -> None:
        if self._callers[key].first() is None:
            del self._callers[key]


class ClassQueue(Generic[Owner]):
    """The queues of one class, and how much each model and each caller has had."""

    def __init__(self, limits: BatchLimits, budgets: Budgets) -> None:
        self._limits = limits
        self._budgets = budgets
        self.queues: dict[str, ModelQueue[Owner]] = {}
        """Only those in which something waits."""
        self.units = 0
        self._served: dict[str, float] = {}
        self._floor = 0.0
        """What the least served of the waiting models had had when it was last looked at."""
        self._shares = Shares()
        self._waiting: dict[str, int] = {}
        """Units by the key of their caller; only of those who have some."""
        self._light: dict[str, float] = {}
        """When all the work of a caller had been taken up, by its key; the last second's."""

    def add(self, unit: Unit[Owner]) -> None:
        """Take in a unit."""
        queue = self.queues.get(unit.key)
        if queue is None:
            queue = ModelQueue(unit, self._budgets, self._shares)
            self.queues[unit.key] = queue
            # A model that comes back has no claim for the time in which it asked for nothing.
            self._served[unit.key] = max(self._served.get(unit.key, 0.0), self._floor)
        if unit.caller.key not in self._waiting:
            self._shares.enter(unit.caller)
        queue.add(unit)
        self._count(unit, 1)

    def remove(self, unit: Unit[Owner]) -> None:
        """Drop a waiting unit."""
        queue = self.queues[unit.key]
        unit.queued = False
        queue.forget(unit)
        self._count(unit, -1)
        self._close(queue)

    @property
    def kinds(self) -> int:
        """Pairs of a model and a caller for which something may wait: 1 if it is one's."""
        return len(self.queues) * len(self._waiting)

    def pick(self) -> ModelQueue[Owner]:
        """The queue whose turn it is; there is one."""
        if len(self.queues) == 1:
            queue = next(iter(self.queues.values()))
            self._floor = self._served[queue.key]
            return queue
        self._floor = min(self._served[key] for key in self.queues)
        most = self._floor + self._limits.max_batch_tokens
        near = (queue for key, queue in self.queues.items() if self._served[key] <= most)
        return min(near, key=lambda each: each.due())

    def take(
        self,
        queue: ModelQueue[Owner],
        batch: Batch[Owner],
        credit: float,
        now: float,
        shared: float,
        lone_tokens: int,
        *,
        short: bool,
    ) -> list[BatchPart[Owner]]:
        """Move units of a queue into a batch; see `ModelQueue.take`.

        Args:
            shared: seconds that the batch may take if it is to be short.
            lone_tokens: see `BatchLimits.timed_tokens`.
            short: whether it is to be short; it is too while somebody waits beside callers
                that ask for little.
        """
        room = self._budgets.room(queue.key, lone_tokens)
        if short or self._light_ones_come(now):
            room = room.shared(shared)
        parts = queue.take(batch, credit, now, room, shared)
        self._account(queue, parts, now)
        return parts

    def _light_ones_come(self, now: float) -> bool:
        """Whether somebody waits beside a caller that has had all its work done of late."""
        self._light = {k: when for k, when in self._light.items() if when > now - LIGHT_SECONDS}
        return any(len(self._waiting) > (key in self._waiting) for key in self._light)

    def _account(self, queue: ModelQueue[Owner], parts: list[BatchPart[Owner]], now: float) -> None:
        """Note what a batch took of a queue."""
        for part in parts:
            self._served[queue.key] += part.tokens
            if not part.unit.queued:
                self._count(part.unit, -1)
                if part.unit.caller.key not in self._waiting:
                    self._light[part.unit.caller.key] = now
        self._close(queue)

    def _count(self, unit: Unit[Owner], more: int) -> None:
        key = unit.caller.key
        self.units += more
        self._waiting[key] = self._waiting.get(key, 0) + more
        if not self._waiting[key]:
            del self._waiting[key]
            self._shares.forget(self._waiting)

    def _close(self, queue: ModelQueue[Owner]) -> None:
        if queue.empty:
            del self.queues[queue.key]
            # Revisions come and go: forget those that have no lead left to remember.
            gone = [
                key
                for key, served in self._served.items()
                if key not in self.queues and served <= self._floor
            ]
            for key in gone:
                del self._served[key]


def _cut(unit: Unit[Owner], room: Room) -> tuple[int, int]:
    """The responses that an empty batch has room for: where they stop, and their tokens.

    At least one: a response that is longer than a batch runs alone.
    """
    prefix, suffixes = len(unit.item.prefix), unit.item.suffixes
    most = room.item_tokens(prefix)
    if unit.tokens <= most and unit.sequences <= room.sequences:
        return unit.item.sequences, unit.tokens
    stop, tokens = unit.taken + 1, prefix + len(suffixes[unit.taken])
    last = min(len(suffixes), unit.taken + room.sequences)
    while stop < last and tokens + len(suffixes[stop]) <= most:
        tokens += len(suffixes[stop])
        stop += 1
    return stop, tokens


def _has_room(batch: Batch[Owner], room: Room) -> bool:
    return (
        batch.new_tokens < room.target
        and batch.tokens < room.most
        and batch.sequences < room.sequences
    )


def _fits(unit: Unit[Owner], batch: Batch[Owner], room: Room, tokens: int) -> bool:
    if not batch.parts:
        return True
    # What must be split waits for an empty batch, so that its prefix is computed as few
    # times as can be.
    return (
        batch.new_tokens + batch.new_tokens_with(unit, tokens) <= room.target
        and batch.tokens + tokens <= room.most
        and batch.sequences + unit.sequences <= room.sequences
        and unit.tokens == tokens
    )


def _in_time(room: Room, unit: Unit[Owner], batch: Batch[Owner], now: float) -> Room:
    """The room that leaves a unit of the batch its deadline."""
    return room if unit.deadline is None else room.within(batch.new_tokens, unit.deadline - now)


def _place(unit: Unit[Owner], batch: Batch[Owner], stop: int, tokens: int) -> BatchPart[Owner]:
    start = unit.taken
    whole = start == 0 and stop == unit.item.sequences
    item = unit.item if whole else unit.item.part(start, stop)
    part = BatchPart(unit, start, stop, item)
    unit.taken = stop
    unit.queued = stop < unit.item.sequences
    # The prefix of a unit that is split goes with every part, and with its rest.
    unit.tokens -= tokens - (len(unit.item.prefix) if unit.queued else 0)
    batch.add(part)
    return part
