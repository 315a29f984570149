"""What callers have had: what fair queueing goes by. Pure."""

from __future__ import annotations

from collections.abc import Collection

from guerdon.serving.access.identity import Caller

MAX_REMEMBERED = 1024
"""Callers whose lead is remembered: addresses of strangers are endless."""


class Shares:
    """How much each caller has had, over its weight, among those who compete.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): the least served goes next, and who
    comes anew, or back, begins where the one that was served last began. So having been idle
    earns no claim, and having had an idle engine is held against nobody.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._now = 0.0
        """What the caller that was served last had had before."""

    def enter(self, caller: Caller) -> None:
        """A caller that had nothing waiting has something now."""
        self._served[caller.key] = max(self._served.get(caller.key, 0.0), self._now)

    def served(self, key: str) -> float:
        """What a caller has had."""
        return self._served[key]

    def charge(self, caller: Caller, amount: float) -> None:
        """A caller is served so much."""
        served = self._served[caller.key]
        self._now = max(self._now, served)
        self._served[caller.key] = served + amount / caller.share

    def forget(self, waiting: Collection[str]) -> None:
        """Drop those who wait for nothing and have no lead left to remember.

        When nobody waits nobody has a lead. When too many are remembered, leads are dropped.
        """
        all_leads = not waiting or len(self._served) > MAX_REMEMBERED
        gone = [
            key
            for key, had in self._served.items()
            if key not in waiting and (all_leads or had <= self._now)
        ]
        for key in gone:
            del self._served[key]
