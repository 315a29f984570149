"""How long a caller waits: for its reply, and to come back when its work found no room.

Pure: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from guerdon.serving.access.identity import Caller

MAX_TIMEOUT = 365 * 86_400.0
"""Seconds. The longest timeout that a request may name."""
CLOCK_SLACK = 0.02
"""Seconds. A caller whose deadline is this near when it leaves has left because of it: its
own clock ends the wait a little before the deadline passes here."""
MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 1.0
"""Seconds until a retry before any work has been timed."""


def left_late(deadline: float | None, now: float) -> bool:
    """Whether a caller who leaves now leaves because of its deadline."""
    return deadline is not None and now >= deadline - CLOCK_SLACK


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
    account: Waiting,
    everybody: Iterable[Waiting],
    *,
    excess: float,
    size: int,
    seconds_each: float | None,
    now: float,
    deadline: float | None = None,
) -> float:
    """Seconds until there should be room, behind all of the caller's that was sent away before.

    Without their place in a line, everyone would be told of the same room and come back for it
    at the same moment. Each caller has a line of its own, that moves at its share of the pace.

    Args:
        excess: how much is to be done before there is room for what comes next.
        size: how much the work is itself.
        seconds_each: of one of either; None before any has been timed.
        deadline: of the work; what cannot come back before it takes no place.
    """
    if seconds_each is None:
        return UNKNOWN_RETRY_SECONDS
    start = max(now + excess * seconds_each, account.slot)
    if deadline is None or start < deadline:
        use = size * seconds_each * competition(account, everybody, now)
        # What is put off beyond the longest wait is not promised: the line cannot grow.
        account.slot = min(start + use, now + MAX_RETRY_SECONDS)
    return min(max(start - now, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
