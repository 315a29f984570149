"""How long each side of a run worked, and how long it stood idle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStats:
    """What happened since the run began or went on; `a - b` is what happened in between."""

    seconds: float = 0.0
    sampling_seconds: float = 0.0
    """While at least one completion was being drawn, or waited for a sampler that was away."""
    scoring_seconds: float = 0.0
    """While at least one group was being scored, or waited for a server that was away."""
    waiting_seconds: float = 0.0
    """While the learner waited for a batch."""
    groups: int = 0
    """Sampled and scored."""
    completions: int = 0
    tokens: int = 0
    """Tokens of completions, without prompts."""
    expired_groups: int = 0
    """Too old when they were to be trained on: their tasks were sampled again."""
    stale_sampler: int = 0
    """Times that the sampler was found with older weights than were published to it."""
    faults_survived: int = 0
    """Times that a service was away and came back."""

    def __sub__(self, other: RolloutStats) -> RolloutStats:
        """What happened after `other` was taken."""
        names = [field.name for field in fields(self)]
        return RolloutStats(**{n: getattr(self, n) - getattr(other, n) for n in names})

    @property
    def sampling_idle(self) -> float:
        """Share of the time in which nothing was being drawn."""
        return 1 - self.sampling_seconds / self.seconds if self.seconds else 0.0

    @property
    def scoring_idle(self) -> float:
        """Share of the time in which nothing was being scored."""
        return 1 - self.scoring_seconds / self.seconds if self.seconds else 0.0

    @property
    def learning_idle(self) -> float:
        """Share of the time in which the learner waited for a batch."""
        return self.waiting_seconds / self.seconds if self.seconds else 0.0


class Meter:
    """Seconds in which something was under way, however many at once."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._busy = 0.0
        self._active = 0
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """So far, what is under way included."""
        return self._busy + (self._now() - self._since if self._active else 0.0)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Something is under way in the block."""
        if not self._active:
            self._since = self._now()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._busy += self._now() - self._since
