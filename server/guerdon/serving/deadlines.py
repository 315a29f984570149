"""How long a call may last, and whether a caller left because its time was over."""

from __future__ import annotations

MAX_TIMEOUT = 365 * 86_400.0
"""Seconds. The longest timeout that a request may name."""

CLOCK_SLACK = 0.02
"""Seconds. A caller whose deadline is this near when it leaves has left because of it: its
own clock ends the wait a little before the deadline passes here."""


def left_late(deadline: float | None, now: float) -> bool:
    """Whether a caller who leaves now leaves because of its deadline."""
    return deadline is not None and now >= deadline - CLOCK_SLACK
