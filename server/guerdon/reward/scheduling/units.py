"""What waits in the scheduler's queues, and what a batch holds. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from guerdon.reward.scheduling.reuse import KnownBeginnings
from guerdon.reward.types import EncodedItem, PriorityClass
from guerdon.serving.access.identity import Caller

Owner = TypeVar("Owner")
"""What whoever adds work wants back with it."""

_SIFTED = 8
"""Entries of a heap that are sifted for each unit that leaves it."""


@dataclass(slots=True, eq=False)
class Unit(Generic[Owner]):
    """A unit of work: one item that waits. Only the scheduler writes to it."""

    key: str
    item: EncodedItem
    priority: PriorityClass
    deadline: float | None
    arrival: float
    due: float
    order: int
    owner: Owner | None
    caller: Caller
    tokens: int
    """Tokens not handed out yet, the prefix included."""
    cache_tokens: int = 0
    """Tokens that the model's prefix cache holds."""
    preemptible: bool = False
    """Whether the model's batches stand aside for others."""
    beginnings: tuple[int, ...] = ()
    """See `guerdon.reward.scheduling.reuse`; none where the model has no prefix cache."""
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
class BatchPart(Generic[Owner]):
    """The responses `start` to `stop` of a unit, in a batch."""

    unit: Unit[Owner]
    start: int
    stop: int
    item: EncodedItem
    """These responses alone, with the prefix."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed for it."""
        return self.item.tokens

    def halves(self) -> list[BatchPart[Owner]]:
        """The first and the second half of its responses; there are at least two."""
        count, half = self.stop - self.start, (self.stop - self.start) // 2
        return [self._part(0, half), self._part(half, count)]

    def _part(self, first: int, last: int) -> BatchPart[Owner]:
        start = self.start
        return BatchPart(self.unit, start + first, start + last, self.item.part(first, last))


@dataclass(slots=True)
class Batch(Generic[Owner]):
    """Work of one model that is computed together."""

    key: str
    known: KnownBeginnings
    """What the engine need not compute."""
    preemptible: bool = False
    """Whether it stands aside for ONLINE work."""
    parts: list[BatchPart[Owner]] = field(default_factory=list)
    tokens: int = 0
    """Tokens as they were queued, prefixes once for each part."""
    new_tokens: int = 0
    """Those of them that will be computed, as far as can be foreseen: its time goes by them."""
    sequences: int = 0

    def new_tokens_with(self, unit: Unit[Owner], tokens: int) -> int:
        """Those of a unit's tokens that would be computed in this batch."""
        return tokens - self.known.tokens(unit.beginnings)

    def add(self, part: BatchPart[Owner]) -> None:
        """Put in some responses of a unit."""
        self.parts.append(part)
        self.tokens += part.tokens
        self.new_tokens += self.new_tokens_with(part.unit, part.tokens)
        self.known.add(part.unit.beginnings)
        self.sequences += part.stop - part.start


class LazyHeap(Generic[Owner]):
    """Units by a time; those that wait no more are left in place until they surface or pile up.

    Far deadlines would otherwise keep finished work in memory. What has piled up is cleared
    out a few entries at a time, so that no call takes long however many there are: an old
    heap is emptied from its end, which leaves it a heap, into a new one.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Unit[Owner]]] = []
        self._old: list[tuple[float, int, Unit[Owner]]] = []
        """What remains to be sifted."""
        self._dead = 0

    def push(self, when: float, unit: Unit[Owner]) -> None:
        """Put in a unit that waits."""
        heapq.heappush(self._entries, (when, unit.order, unit))

    def peek(self) -> Unit[Owner] | None:
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

    def _first_heap(self) -> list[tuple[float, int, Unit[Owner]]]:
        """The one whose first entry comes first; units that wait no more are removed there."""
        for heap in (self._entries, self._old):
            while heap and not heap[0][2].queued:
                heapq.heappop(heap)
                self._dead -= 1
        if self._entries and self._old:
            return min(self._entries, self._old, key=lambda heap: heap[0][:2])
        return self._entries or self._old
