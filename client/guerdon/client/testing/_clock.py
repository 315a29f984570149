"""A clock for tests of what waits."""

from __future__ import annotations

import asyncio

from guerdon.client.config import Clock


class FakeClock:
    """A clock that sleeps in no time and remembers how long; give `clock.clock` to a client.

    Args:
        chance: stands for the jitter: where between its bounds a random number lies, 0 to 1.
    """

    def __init__(self, chance: float = 0.5) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []
        self.chance = chance

    @property
    def clock(self) -> Clock:
        """The `clock` argument for a client."""
        return Clock(now=lambda: self.time, sleep=self._sleep, uniform=self._uniform)

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance
