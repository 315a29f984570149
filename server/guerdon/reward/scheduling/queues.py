"""The queues of the scheduler: units in the order in which they are due, by class and model.

Pure, like `guerdon.reward.scheduling.scheduler`, which owns them and says which goes next.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from guerdon.reward.scheduling.limits import BatchLimits, Budgets, Room
from guerdon.reward.types import EncodedItem, PriorityClass

MAX_SKIPPED = 64
"""Units that one model may have skipped over at a time: it bounds the work of `next_batch`."""

_SIFTED = 8
"""Entries of a heap that are sifted for each unit that leaves it."""


@dataclass(slots=True, eq=False)
class Unit:
    """One item that waits. Only the scheduler writes to it."""

    key: str
    item: EncodedItem
    priority: PriorityClass
    deadline: float | None
    arrival: float
    due: float
    order: int
    owner: object
    """Whatever the caller wants back with it."""
    tokens: int
    """Tokens not handed out yet, the prefix included."""
    taken: int = 0
    """Responses handed out so far, from the first."""
    queued: bool = True
    """Whether some of it still waits."""
    skipped: bool = False

    @property
    def sequences(self) -> int:
        """Responses that still wait."""
        return self.item.sequences - self.taken


@dataclass(frozen=True, slots=True)
class Part:
    """The responses `start` to `stop` of a unit, in a batch."""

    unit: Unit
    start: int
    stop: int
    item: EncodedItem
    """These responses alone, with the prefix."""
    tokens: int


@dataclass(slots=True)
class Batch:
    """Work of one model that is computed together."""

    key: str
    parts: list[Part] = field(default_factory=list)
    tokens: int = 0
    sequences: int = 0


class LazyHeap:
    """Units by a time; those that wait no more are left in place until they surface or pile up.

    Far deadlines would otherwise keep finished work in memory. What has piled up is cleared
    out a few entries at a time, so that no call takes long however many there are: an old
    heap is emptied from its end, which leaves it a heap, into a new one.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Unit]] = []
        self._old: list[tuple[float, int, Unit]] = []
        """What remains to be sifted."""
        self._dead = 0

    def push(self, when: float, unit: Unit) -> None:
        """Put in a unit that waits."""
        heapq.heappush(self._entries, (when, unit.order, unit))

    def peek(self) -> Unit | None:
        """The first unit that still waits."""
        heap = self._first_heap()
        return heap[0][2] if heap else None

    def pop(self) -> None:
        """Remove what `peek` gave."""
        heapq.heappop(self._first_heap())

    def forget(self) -> None:
        """Note that a unit in here waits no more."""
        self._dead += 1
        if not self._old and self._dead > 64 + len(self._entries) // 4:
            self._old, self._entries = self._entries, []
        for _ in range(min(_SIFTED, len(self._old))):
            entry = self._old.pop()
            if entry[2].queued:
                heapq.heappush(self._entries, entry)
            else:
                self._dead -= 1

    def live_units(self) -> Iterator[Unit]:
        """All that wait, in no order."""
        entries = itertools.chain(self._entries, self._old)
        return (unit for _, _, unit in entries if unit.queued)

    def _first_heap(self) -> list[tuple[float, int, Unit]]:
        """The one whose first entry comes first; units that wait no more are removed there."""
        for heap in (self._entries, self._old):
            while heap and not heap[0][2].queued:
                heapq.heappop(heap)
                self._dead -= 1
        if self._entries and self._old:
            return min(self._entries, self._old, key=lambda heap: heap[0][:2])
        return self._entries or self._old


class Line:
    """The units of one model in one class."""

    def __init__(self, key: str, budgets: Budgets) -> None:
        self.key = key
        self._budgets = budgets
        self._waiting = LazyHeap()
        self._skipped: list[Unit] = []
        """Units that go first, in this order. At most `MAX_SKIPPED` and one split unit."""

    def add(self, unit: Unit) -> None:
        """Take in a unit."""
        self._waiting.push(unit.due, unit)

    def forget(self, unit: Unit) -> None:
        """Note that a unit in here waits no more."""
        if unit.skipped:
            self._skipped.remove(unit)
        else:
            self._waiting.forget()

    def first(self) -> Unit | None:
        """The unit that goes next."""
        return self._skipped[0] if self._skipped else self._waiting.peek()

    def due(self) -> float:
        """When the most urgent unit is due; the line is not empty."""
        waiting = self._waiting.peek()
        dues = [unit.due for unit in self._skipped]
        return min([*dues, waiting.due] if waiting is not None else dues)

    def first_cost(self) -> int:
        """Tokens that the first unit would take in an empty batch."""
        unit = self.first()
        assert unit is not None
        return _cut(unit, self._budgets.room(self.key))[1]

    def live_units(self) -> Iterator[Unit]:
        """All that wait, in no order."""
        return itertools.chain(list(self._skipped), self._waiting.live_units())

    def take(self, batch: Batch, credit: float, now: float) -> list[Part]:
        """Move units into the batch while there is room, credit, and time for those in it.

        On credit they go strictly in order: if others could overtake the first unit, they
        would spend what it must gather. Else a unit that does not fit is skipped over.
        """
        parts: list[Part] = []
        misfits: list[Unit] = []
        room = self._budgets.room(self.key)
        for part in batch.parts:
            room = _in_time(room, part.unit, batch, now)
        while len(misfits) < MAX_SKIPPED and _has_room(batch, room):
            unit = self.first()
            if unit is None:
                break
            stop, tokens = _cut(unit, room)
            if tokens > credit or (credit < math.inf and not _fits(unit, batch, room, tokens)):
                break
            self._pop_first()
            if not _fits(unit, batch, room, tokens):
                misfits.append(unit)
                continue
            credit -= tokens
            parts.append(_place(unit, batch, stop, tokens))
            room = _in_time(room, unit, batch, now)
            if unit.queued:  # the rest of a split unit: it begins the next batch
                misfits.append(unit)
        self._put_back(misfits)
        return parts

    def _pop_first(self) -> None:
        if self._skipped:
            self._skipped.pop(0).skipped = False
        else:
            self._waiting.pop()

    def _put_back(self, misfits: list[Unit]) -> None:
        for unit in misfits:
            unit.skipped = True
        self._skipped = misfits + self._skipped


class ClassQueue:
    """The lines of one class, and how much each model has had."""

    def __init__(self, limits: BatchLimits, budgets: Budgets) -> None:
        self._limits = limits
        self._budgets = budgets
        self.lines: dict[str, Line] = {}
        """Only those in which something waits."""
        self.units = 0
        self.tokens = 0
        self._served: dict[str, float] = {}
        self._floor = 0.0
        """What the least served of the waiting models had had when it was last looked at."""

    def add(self, unit: Unit) -> None:
        """Take in a unit."""
        line = self.lines.get(unit.key)
        if line is None:
            line = self.lines[unit.key] = Line(unit.key, self._budgets)
            # A model that comes back has no claim for the time in which it asked for nothing.
            self._served[unit.key] = max(self._served.get(unit.key, 0.0), self._floor)
        line.add(unit)
        self.units += 1
        self.tokens += unit.tokens

    def remove(self, unit: Unit) -> None:
        """Drop a waiting unit."""
        line = self.lines[unit.key]
        unit.queued = False
        line.forget(unit)
        self.units -= 1
        self.tokens -= unit.tokens
        self._close(line)

    def pick(self) -> Line:
        """The line whose turn it is; there is one."""
        if len(self.lines) == 1:
            line = next(iter(self.lines.values()))
            self._floor = self._served[line.key]
            return line
        self._floor = min(self._served[key] for key in self.lines)
        most = self._floor + self._limits.max_batch_tokens
        near = (line for key, line in self.lines.items() if self._served[key] <= most)
        return min(near, key=Line.due)

    def account(self, line: Line, parts: list[Part]) -> None:
        """Note what a batch took of a line."""
        for part in parts:
            self._served[line.key] += part.tokens
            # The prefix of a unit that is split goes with every part, and with its rest.
            self.tokens -= part.tokens - (len(part.item.prefix) if part.unit.queued else 0)
            self.units -= not part.unit.queued
        self._close(line)

    def live_units(self) -> Iterator[Unit]:
        """All that wait, in no order."""
        return itertools.chain.from_iterable(
            [list(line.live_units()) for line in self.lines.values()]
        )

    def _close(self, line: Line) -> None:
        if line.first() is None:
            del self.lines[line.key]
            # Revisions come and go: forget those that have no lead left to remember.
            gone = [
                key
                for key, served in self._served.items()
                if key not in self.lines and served <= self._floor
            ]
            for key in gone:
                del self._served[key]


def _cut(unit: Unit, room: Room) -> tuple[int, int]:
    """The responses that an empty batch has room for: where they stop, and their tokens.

    At least one: a response that is longer than a batch runs alone.
    """
    prefix, suffixes = len(unit.item.prefix), unit.item.suffixes
    most = room.of_item(prefix)
    if unit.tokens <= most and unit.sequences <= room.sequences:
        return unit.item.sequences, unit.tokens
    stop, tokens = unit.taken + 1, prefix + len(suffixes[unit.taken])
    last = min(len(suffixes), unit.taken + room.sequences)
    while stop < last and tokens + len(suffixes[stop]) <= most:
        tokens += len(suffixes[stop])
        stop += 1
    return stop, tokens


def _has_room(batch: Batch, room: Room) -> bool:
    return batch.tokens < room.target and batch.sequences < room.sequences


def _fits(unit: Unit, batch: Batch, room: Room, tokens: int) -> bool:
    if not batch.parts:
        return True
    # What must be split waits for an empty batch, so that its prefix is computed as few
    # times as can be.
    return (
        batch.tokens + tokens <= room.target
        and batch.sequences + unit.sequences <= room.sequences
        and unit.tokens == tokens
    )


def _in_time(room: Room, unit: Unit, batch: Batch, now: float) -> Room:
    """The room that leaves a unit of the batch its deadline."""
    return room if unit.deadline is None else room.within(batch.tokens, unit.deadline - now)


def _place(unit: Unit, batch: Batch, stop: int, tokens: int) -> Part:
    start = unit.taken
    whole = start == 0 and stop == unit.item.sequences
    item = unit.item if whole else unit.item.part(start, stop)
    part = Part(unit, start, stop, item, tokens)
    unit.taken = stop
    unit.queued = stop < unit.item.sequences
    unit.tokens -= tokens - (len(unit.item.prefix) if unit.queued else 0)
    batch.parts.append(part)
    batch.tokens += tokens
    batch.sequences += stop - start
    return part
