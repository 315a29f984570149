"""How much a judge's endpoint is asked: requests at a time, and who is next; and in a period."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from guerdon.reward.fair_shares import Shares
from guerdon.reward.judge.settings import JudgeLimits
from guerdon.reward.types import PriorityClass
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import Overloaded


class Budget:
    """Requests and tokens that may be spent until the budget begins anew.

    Tokens are known when a reply has come, so the requests that are under way when they are used
    up still go beyond.

    Args:
        limits: of the judge.
        clock: seconds, steadily rising.
    """

    def __init__(self, limits: JudgeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_requests = _bound(limits.budget_requests)
        self._most_tokens = _bound(limits.budget_tokens)
        self._seconds = limits.budget_seconds
        self._clock = clock
        self._end = -math.inf
        self._requests = self._tokens = 0

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are bounded."""
        return self._most_tokens < math.inf

    def take(self) -> None:
        """Spend a request.

        Raises:
            Overloaded: the budget is spent; come back when it begins anew.
        """
        now = self._clock()
        if now >= self._end:
            self._end = now + self._seconds
            self._requests = self._tokens = 0
        if self._requests >= self._most_requests or self._tokens >= self._most_tokens:
            what = "requests" if self._requests >= self._most_requests else "tokens"
            raise Overloaded(f"the judge's budget of {what} is spent", retry_after=self._end - now)
        self._requests += 1

    def charge(self, tokens: int) -> None:
        """Spend a reply's tokens."""
        self._tokens += tokens


def _bound(most: int | None) -> float:
    return math.inf if most is None else most


BATCH_TURN = 4
"""Every so many slots that both classes wait for, bulk work gets one."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants a verdict, and in which class."""

    caller: Caller
    priority: PriorityClass


_Turn = asyncio.Future[None]


class Slots:
    """A number of slots. Online work goes first, and within a class who has had least.

    All methods belong to one event loop.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: dict[tuple[PriorityClass, str], dict[int, tuple[Asker, _Turn]]] = {}
        """Turns by class and caller's key, in order; none of the queues is empty."""
        self._numbers = itertools.count()
        self._contested = 0
        self._shares = Shares()

    @asynccontextmanager
    async def one(self, asker: Asker) -> AsyncIterator[None]:
        """Hold a slot, after waiting for it."""
        number, turn = next(self._numbers), asyncio.get_running_loop().create_future()
        place = (asker.priority, asker.caller.key)
        if not any((each, asker.caller.key) in self._waiting for each in PriorityClass):
            self._shares.enter(asker.caller)
        self._waiting.setdefault(place, {})[number] = (asker, turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if number in self._waiting.get(place, ()):
                self._drop(place, number)
            elif not turn.cancelled():  # its turn came as it left
                self._give_back()
            raise
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._waiting:
            place = self._next()
            number = next(iter(self._waiting[place]))
            asker, turn = self._waiting[place][number]
            self._drop(place, number)
            if turn.cancelled():  # it has left, and does not know it yet
                continue
            self._shares.charge(asker.caller, 1.0)
            self._shares.forget({key for _, key in self._waiting})
            self._free -= 1
            turn.set_result(None)

    def _drop(self, place: tuple[PriorityClass, str], number: int) -> None:
        del self._waiting[place][number]
        if not self._waiting[place]:
            del self._waiting[place]

    def _next(self) -> tuple[PriorityClass, str]:
        """The class and caller that is next."""
        classes = {priority for priority, _ in self._waiting}
        chosen = PriorityClass.ONLINE if PriorityClass.ONLINE in classes else PriorityClass.BATCH
        if len(classes) > 1:
            self._contested += 1
            if self._contested % BATCH_TURN == 0:
                chosen = PriorityClass.BATCH
        return min(
            (place for place in self._waiting if place[0] is chosen),
            key=lambda place: (self._shares.served(place[1]), next(iter(self._waiting[place]))),
        )
