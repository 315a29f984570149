"""The seconds of a run by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def timed_phase(
    seconds: dict[str, float], name: str, changed: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], None]]:
    """Time a phase, also one that an error ends.

    Args:
        seconds: by phase; gets more of this one.
        name: of the phase.
        changed: called when there is more.

    Yields:
        What may be called to add up what was spent so far.
    """
    begun = time.monotonic()

    def spend() -> None:
        nonlocal begun
        now = time.monotonic()
        seconds[name] = seconds.get(name, 0.0) + now - begun
        begun = now
        changed()

    try:
        yield spend
    finally:
        spend()


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds as a summary says them."""
    return {name: round(spent, 2) for name, spent in seconds.items()}
