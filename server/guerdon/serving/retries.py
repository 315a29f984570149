"""When a caller whose work found no room should come back. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from guerdon.serving.access.identity import Caller

MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 1.0
"""Seconds until a retry before any work has been timed."""


class Waiting(Protocol):
    """A caller that may have to wait, as an admission sees it."""

    caller: Caller
    slot: float
    """When the room that the caller has been promised so far should have been used."""

    def idle(self, now: float) -> bool:
        """Whether the caller holds and wants nothing."""


def competition(account: Waiting, everybody: Iterable[Waiting], now: float) -> float:
    """The shares of all who hold or want room, over a caller's own."""
    others = (each for each in everybody if each is not account and not each.idle(now))
    return 1 + sum(each.caller.share for each in others) / account.caller.share


def promise_room(
    account: Waiting, *, wait: float, use: float, now: float, deadline: float | None = None
) -> float:
    """Seconds until there should be room, behind all of the caller's that was sent away before.

    Without their place in a line, everyone would be told of the same room and come back for it
    at the same moment. Each caller has a line of its own, that moves at its share of the pace.

    Args:
        wait: seconds until there is room for what comes next.
        use: seconds that the work uses its room, at the caller's share of the pace.
        deadline: of the work; what cannot come back before it takes no place.
    """
    start = max(now + wait, account.slot)
    if deadline is None or start < deadline:
        # What is put off beyond the longest wait is not promised: the line cannot grow.
        account.slot = min(start + use, now + MAX_RETRY_SECONDS)
    return min(max(start - now, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
