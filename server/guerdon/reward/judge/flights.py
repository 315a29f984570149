"""Work under way, shared by all who want its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Flight(Generic[R]):
    task: asyncio.Task[R]
    waiting: int = 0


class Flights(Generic[R]):
    """Does the same work once at a time. It is cancelled when the last who waited has left.

    All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[R]] = {}

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of the work under a key, which begins unless it is under way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            done = flight.task.done()
            if (done or not flight.waiting) and self._flights.get(key) is flight:
                del self._flights[key]
            if not done and not flight.waiting:
                flight.task.cancel()
