"""Which accepted work goes into the next batch.

Pure: no torch, no I/O, no threads, and no clock, for time comes in as an argument. Whoever
owns a `Scheduler` calls it from one thread and asks for a batch when the engine is free.

The rules, and why, are in `docs/scheduling.md`. In short:

- A batch holds one model key (one revision), so that no batch mixes versions.
- Within a class the caller that has had the fewest tokens for its weight goes first, unit by
  unit. Of a caller, the unit that is *due* first goes first: at its deadline, or `patience`
  seconds after its arrival, whichever comes first. Whatever has waited longer than
  `patience` is ahead of all that the same caller sends later, so nothing starves.
- ONLINE goes before BATCH, and between the layers of a BATCH batch that is computed, where its
  model can stand aside. Every ONLINE token computed while BATCH waits earns BATCH credit
  of share / (1 - share) tokens, and BATCH goes first once its credit pays for its first unit.
- Among the models of a class, those within one batch of the least served one compete by what
  is due first.
- A unit that does not fit in the room left is skipped over and goes first next time. A unit
  larger than a batch is split by responses, and its parts begin batches; one response that
  is longer than a batch runs alone.
- A batch is as large as its model computes in `max_batch_seconds`, going by its last ones and
  by what its engine's prefix cache should hold, and no larger than fits in memory and leaves
  those in it their deadlines. It takes no longer than `shared_batch_seconds` if it is BATCH that
  can't stand aside while ONLINE work comes, or ONLINE while callers with little work come beside
  others; and longer, up to a quarter of what waits, while all that comes is one caller's and can
  wait.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from guerdon.reward.scheduling.limits import MAX_NAMES, BatchLimits, Budgets
from guerdon.reward.scheduling.queues import LIGHT_SECONDS, ClassQueue, LoneWork, ModelQueue
from guerdon.reward.scheduling.reuse import KnownBeginnings, beginnings
from guerdon.reward.scheduling.units import Batch, BatchPart, LazyHeap, Owner, Unit
from guerdon.reward.types import EncodedItem, PriorityClass
from guerdon.serving.access.identity import EVERYBODY, Caller

_ROUNDING = 1e-6
"""Tokens by which sums of credit may be off."""


@dataclass(frozen=True, slots=True)
class Formed(Generic[Owner]):
    """What `Scheduler.next_batch` found."""

    batch: Batch[Owner] | None
    expired: list[Unit[Owner]]
    """Units dropped because their deadline has passed. Some of a unit's responses may have
    been handed out earlier: `unit.taken` says how many."""


class Scheduler(Generic[Owner]):
    """Holds accepted work and forms batches from it.

    Adding, cancelling and expiring cost O(log n) for n queued units, and a batch costs
    O(log n) for each unit in it.

    Args:
        limits: how large batches may be, and how classes share the engines.
        engines: how many ask for batches.
    """

    def __init__(self, limits: BatchLimits, engines: int = 1) -> None:
        self._limits = limits
        self._engines = engines
        self._orders = itertools.count()
        self._deadlines = LazyHeap[Owner]()
        self._budgets = Budgets(limits)
        self._online = ClassQueue[Owner](limits, self._budgets)
        self._batch = ClassQueue[Owner](limits, self._budgets)
        self._online_came = -math.inf
        """When the last ONLINE work came."""
        self._lone = LoneWork(limits.patience)
        self._credit = 0.0
        self._known = OrderedDict[tuple[int, str], KnownBeginnings]()
        """Known beginnings by engine and key, used longest ago first."""
        share = limits.batch_share
        self._earning = share / (1 - share)

    def __len__(self) -> int:
        """Units that wait."""
        return self._online.units + self._batch.units

    def add(
        self,
        key: str,
        item: EncodedItem,
        *,
        priority: PriorityClass,
        deadline: float | None,
        now: float,
        owner: Owner | None = None,
        caller: Caller = EVERYBODY,
        cache_tokens: int = 0,
        preemptible: bool = False,
    ) -> Unit[Owner]:
        """Take in one item.

        Args:
            key: names the model's revision.
            item: what is to be computed.
            priority: its class.
            deadline: when it is dropped, if it has not been handed out.
            now: the time.
            owner: what it is for.
            caller: whose it is.
            cache_tokens: what the model's prefix cache holds; 0 without one.
            preemptible: whether the model's batches stand aside for others.

        Raises:
            ValueError: it has no response.
        """
        if not item.suffixes:
            raise ValueError("an item without a response")
        unit = Unit(
            key=key,
            item=item,
            priority=priority,
            deadline=deadline,
            arrival=now,
            due=self._limits.due(deadline, now),
            order=next(self._orders),
            owner=owner,
            caller=caller,
            tokens=item.tokens,
            cache_tokens=cache_tokens,
            preemptible=preemptible,
            beginnings=beginnings(item) if cache_tokens else (),
        )
        self._class(priority).add(unit)
        self._lone.note(unit, now)
        if priority is PriorityClass.ONLINE:
            self._online_came = now
        if deadline is not None:
            self._deadlines.push(deadline, unit)
        return unit

    def cancel(self, unit: Unit[Owner]) -> bool:
        """Drop what still waits of a unit; say whether there was any."""
        if not unit.queued:
            return False
        self._class(unit.priority).remove(unit)
        if unit.deadline is not None:
            self._deadlines.forget()
        return True

    def stands_aside(self, running: Batch[Owner]) -> bool:
        """Whether something waits that goes between the layers of a batch that is computed."""
        return running.preemptible and self._online.units > 0

    def next_batch(
        self, now: float, engine: int = 0, running: Batch[Owner] | None = None
    ) -> Formed[Owner]:
        """Drop what has expired, and form a batch for an engine from the rest if there is any.

        Args:
            running: what the engine computes: the new batch goes between its layers.
        """
        expired = list(self._expire(now))
        if running is None:
            batch = self._form(now, engine) if len(self) else None
        else:
            waits = self.stands_aside(running)
            batch = self._form_online(now, engine, alone=False) if waits else None
        assert batch is None or batch.parts, "a batch without work"
        return Formed(batch, expired)

    def observe(self, key: str, tokens: int, seconds: float) -> None:
        """Learn from a batch that was computed: how large the next ones may be."""
        self._budgets.observe(key, tokens, seconds)

    def batch_seconds(self, key: str, tokens: int) -> float | None:
        """How long a batch should take; None before a key's first one."""
        return self._budgets.batch_seconds(key, tokens)

    def out_of_memory(self, key: str, tokens: int) -> None:
        """Learn from a batch of so many tokens that did not fit in the engine's memory."""
        self._budgets.out_of_memory(key, tokens)

    def cache_emptied(self, engine: int) -> None:
        """Expect nothing in an engine's prefix caches: it was started anew, or a batch failed."""
        for place in [place for place in self._known if place[0] == engine]:
            del self._known[place]

    def _class(self, priority: PriorityClass) -> ClassQueue[Owner]:
        return self._online if priority is PriorityClass.ONLINE else self._batch

    def _expire(self, now: float) -> Iterator[Unit[Owner]]:
        while (unit := self._deadlines.peek()) is not None:
            assert unit.deadline is not None
            if unit.deadline > now:
                return
            self.cancel(unit)
            yield unit

    def _begin(self, queue: ModelQueue[Owner], engine: int) -> Batch[Owner]:
        known = self._known.setdefault((engine, queue.key), KnownBeginnings())
        self._known.move_to_end((engine, queue.key))
        while len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)
        known.begin_batch(queue.cache_tokens)
        return Batch(queue.key, known)

    def _form(self, now: float, engine: int) -> Batch[Owner]:
        credit = self._credit + _ROUNDING if self._contended else math.inf
        if not self._batch.units or (queue := self._batch.pick()).first_cost() > credit:
            return self._form_online(now, engine)
        contended = self._contended
        batch = self._begin(queue, engine)
        self._take_batch(queue, batch, credit, now)
        for_batch = batch.tokens
        # ONLINE work of the same model rides along, unless it can go between the layers, or BATCH
        # has been kept waiting for so long that its credit would grow without bound.
        batch.preemptible = queue.preemptible
        companion = None if queue.preemptible else self._online.queues.get(queue.key)
        if companion is not None and credit - for_batch < self._limits.max_batch_tokens:
            self._take_online(companion, batch, now)
        self._account(contended, for_batch, batch.tokens - for_batch)
        return batch

    def _form_online(self, now: float, engine: int, *, alone: bool = True) -> Batch[Owner]:
        """Form a batch of ONLINE work.

        Args:
            alone: whether the engine has no other batch in hand.
        """
        contended, queue = self._contended, self._online.pick()
        batch = self._begin(queue, engine)
        self._take_online(queue, batch, now, alone=alone)
        self._account(contended, 0, batch.tokens)
        return batch

    @property
    def _contended(self) -> bool:
        """Whether work of both classes waits."""
        return bool(self._online.units and self._batch.units)

    def _account(self, contended: bool, for_batch: int, for_online: int) -> None:
        """Keep the credit of BATCH, which takes no more than it has earned."""
        if contended:
            self._credit += self._earning * for_online - for_batch
        else:
            # Alone, BATCH has had its share at once; away, it gathers no claim for later.
            self._credit = max(0.0, self._credit - for_batch) if for_batch else 0.0

    def _take_batch(
        self, queue: ModelQueue[Owner], batch: Batch[Owner], credit: float, now: float
    ) -> None:
        """Move units of BATCH into a batch: a short one while ONLINE work comes and must wait."""
        short = not queue.preemptible and now < self._online_came + LIGHT_SECONDS
        shared = self._limits.shared_batch_seconds if short else math.inf
        lone_tokens = self._lone_tokens(queue, now)
        self._forget_deadlines(
            self._batch.take(queue, batch, credit, now, shared, lone_tokens, short=short)
        )

    def _take_online(
        self, queue: ModelQueue[Owner], batch: Batch[Owner], now: float, *, alone: bool = False
    ) -> None:
        shared = self._limits.shared_batch_seconds
        lone_tokens = self._lone_tokens(queue, now) if alone else 0
        self._forget_deadlines(
            self._online.take(queue, batch, math.inf, now, shared, lone_tokens, short=False)
        )

    def _lone_tokens(self, queue: ModelQueue[Owner], now: float) -> int:
        """Tokens of a queue that wait for each engine, if they are lone work; else 0."""
        alone = self._online.kinds + self._batch.kinds == 1
        return queue.tokens // self._engines if alone and self._lone.lasts(now) else 0

    def _forget_deadlines(self, parts: list[BatchPart[Owner]]) -> None:
        """Note that the deadlines of units that are wholly in a batch are watched no more."""
        for part in parts:
            if not part.unit.queued and part.unit.deadline is not None:
                self._deadlines.forget()
