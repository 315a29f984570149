"""Notices a forward pass that hangs, as they do on a device that has failed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MULTIPLE = 20.0
"""How many times longer than foreseen a batch may take."""
_UNMEASURED = 10.0
"""How much more patience a model's first batch is given: kernels are loaded in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A batch in the model's hands. Each is an object of its own."""

    expected: float | None
    """Seconds that it should take; None where no batch of the model has been measured."""


def allowed_seconds(expected: float | None, least: float) -> float:
    """How long a batch may take before it is taken to hang."""
    if expected is None:
        return _UNMEASURED * least
    return max(least, _MULTIPLE * expected)


class Watchdog:
    """Told now and then of the batch that is being computed, says whether it hangs.

    Args:
        least: seconds that every batch may take.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self.interval = min(1.0, least / 8)
        """Seconds after which it wants to be told again."""
        self._seen: Running | None = None
        self._waited = 0.0
        self._last = 0.0

    def hangs(self, running: Running | None, now: float) -> bool:
        """Whether the batch in hand has taken too long."""
        passed, self._last = now - self._last, now
        if running is None or running is not self._seen:
            self._seen, self._waited = running, 0.0
            return False
        # Where this comes late, the process was stopped, and the batch with it.
        self._waited += min(passed, 2 * self.interval)
        return self._waited > allowed_seconds(running.expected, self._least)
