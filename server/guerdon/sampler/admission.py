"""How much may be asked for at once, and when to come back. Pure: the time is passed in.

Completions are what is bounded, running and waiting together: a call is accepted or shed
whole. When there is no room, the time until there should be some follows from how fast
completions ended of late, behind all who were sent away before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from guerdon.serving.errors import InvalidRequest, Overloaded

MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 1.0
"""Before any completion has ended."""
_MEMORY_SECONDS = 30.0
"""Seconds of work after which an old completion counts 1/e."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The room that one call holds. Only the admission writes to it."""

    completions: int
    """Held now."""


class Admission:
    """Keeps the books of what has been accepted. All calls come from one thread.

    Args:
        limit: most completions running and waiting.
    """

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self._held = 0
        self._pace = _Pace()
        self._slot = -math.inf
        """When the room that has been promised so far should have been used."""

    @property
    def held(self) -> int:
        """Completions accepted and not yet handed over."""
        return self._held

    def reserve(self, completions: int, *, now: float) -> Ticket:
        """Hold room for a call.

        Raises:
            InvalidRequest: there is never so much room.
            Overloaded: there is no room now.
        """
        assert completions > 0
        if completions > self.limit:
            raise InvalidRequest(
                "items",
                f"they ask for {completions} completions, the server's limit is {self.limit}: "
                "send fewer at a time",
            )
        excess = self._held + completions - self.limit
        if excess > 0:
            after = self._promise(excess, completions, now)
            raise Overloaded(
                f"{self._held} completions are running or waiting, the limit is {self.limit}",
                retry_after=after,
            )
        self._pace.passed(now, busy=self._held > 0)
        self._held += completions
        return Ticket(completions)

    def finished(self, ticket: Ticket, *, now: float) -> None:
        """One completion has ended and was handed over."""
        self._pace.passed(now, busy=True)
        self._pace.done += 1
        self._give_back(ticket, 1)

    def close(self, ticket: Ticket, *, now: float) -> None:
        """Give back all that a ticket still holds: those ended early. Twice does nothing."""
        self._pace.passed(now, busy=self._held > 0)
        self._give_back(ticket, ticket.completions)

    def _give_back(self, ticket: Ticket, completions: int) -> None:
        assert 0 <= completions <= ticket.completions, "gave back more than was held"
        ticket.completions -= completions
        self._held -= completions

    def _promise(self, excess: int, completions: int, now: float) -> float:
        """Seconds until there should be room, behind all who were sent away before.

        Without their place in a line, everyone would be told of the same room and come back
        for it at the same moment.
        """
        self._pace.passed(now, busy=True)
        each = self._pace.seconds_each
        if each is None:
            return UNKNOWN_RETRY_SECONDS
        start = max(now + excess * each, self._slot)
        # What is put off beyond the longest wait is not promised: the line cannot grow.
        self._slot = min(start + completions * each, now + MAX_RETRY_SECONDS)
        return min(max(start - now, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)


class _Pace:
    """How fast completions end while there is work, over the last minute or so."""

    def __init__(self) -> None:
        self.done = 0.0
        self._busy = 0.0
        self._last: float | None = None

    def passed(self, now: float, *, busy: bool) -> None:
        """Time has passed since the last event; it counts if there was work."""
        seconds = 0.0 if self._last is None or not busy else max(0.0, now - self._last)
        self._last = now
        fade = math.exp(-seconds / _MEMORY_SECONDS)
        self.done *= fade
        self._busy = self._busy * fade + _MEMORY_SECONDS * (1 - fade)

    @property
    def seconds_each(self) -> float | None:
        """Seconds per completion; None before any has ended."""
        return self._busy / self.done if self.done > 0 else None
