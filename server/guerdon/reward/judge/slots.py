"""How many requests are under way at a time, and who is next."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from guerdon.reward.scheduling.shares import Shares
from guerdon.reward.types import PriorityClass
from guerdon.serving.access.identity import Caller

BATCH_TURN = 4
"""Every so many slots that both classes wait for, bulk work gets one."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants a verdict, and in which class."""

    caller: Caller
    priority: PriorityClass


class Slots:
    """A number of slots. Online work goes first, and within a class who has had least.

    All methods belong to one event loop.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, Asker, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._contested = 0
        self._shares = Shares()

    @asynccontextmanager
    async def one(self, asker: Asker) -> AsyncIterator[None]:
        """Hold a slot, after waiting for it."""
        turn = asyncio.get_running_loop().create_future()
        entry = (next(self._numbers), asker, turn)
        if not any(each.caller.key == asker.caller.key for _, each, _ in self._waiting):
            self._shares.enter(asker.caller)
        self._waiting.append(entry)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # its turn came as it left
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
            entry = self._next()
            self._waiting.remove(entry)
            self._shares.charge(entry[1].caller, 1.0)
            self._shares.forget({asker.caller.key for _, asker, _ in self._waiting})
            self._free -= 1
            entry[2].set_result(None)

    def _next(self) -> tuple[int, Asker, asyncio.Future[None]]:
        classes = {asker.priority for _, asker, _ in self._waiting}
        chosen = PriorityClass.ONLINE if PriorityClass.ONLINE in classes else PriorityClass.BATCH
        if len(classes) > 1:
            self._contested += 1
            if self._contested % BATCH_TURN == 0:
                chosen = PriorityClass.BATCH
        return min(
            (each for each in self._waiting if each[1].priority is chosen),
            key=lambda each: (self._shares.served(each[1].caller.key), each[0]),
        )
