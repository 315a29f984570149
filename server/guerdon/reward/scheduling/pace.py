"""How long a batch takes: a line fitted to the batches that have finished. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_NAMES = 256
"""Names that are remembered: models come and go."""
_MEMORY_BATCHES = 64
"""Batches after which an old one counts no more, however small they are."""
_PRIOR = 0.05
"""Spread of sizes (variance over squared mean) from which on the fitted line is believed
more than what is assumed of batches of one size."""
_PROPORTIONAL_TOKENS = 512
"""Batches of one size tell nothing of others: from this size on their time is taken to be
proportional to the tokens, and the smaller they are the more of it for overhead."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A batch of n tokens takes `overhead + per_token * n` seconds."""

    overhead: float
    per_token: float
    size: float
    """Tokens of the batches that this was learnt from: a mean by token."""

    def seconds(self, tokens: float, batch_tokens: int) -> float:
        """The time of so many queued tokens, computed in batches of up to `batch_tokens`."""
        if tokens <= 0:
            return 0.0
        return self.overhead * max(1.0, tokens / batch_tokens) + self.per_token * tokens


class Pace:
    """Learns from finished batches, by name, and forgets what is old.

    What was seen fades with the tokens computed since, for the many small batches of a quiet
    hour say little of how fast full ones are, and with the number of batches, so that one
    that was slow for a reason of its own (the first, say) is forgotten all the same.

    Args:
        window_tokens: tokens after which an old batch counts 1/e.
    """

    def __init__(self, window_tokens: float) -> None:
        self._window = window_tokens
        self._sums: dict[str, _Sums] = {}

    def observe(self, name: str, tokens: int, seconds: float) -> None:
        """Take in one finished batch."""
        tokens = max(tokens, 1)  # what needs no tokens still takes time
        # Put last: the names of models that are gone come first, and are forgotten.
        sums = self._sums.pop(name, _Sums())
        sums = sums.faded(math.exp(-max(tokens / self._window, 1 / _MEMORY_BATCHES)))
        self._sums[name] = sums.plus(_Sums.one(tokens, seconds))
        while len(self._sums) > MAX_NAMES:
            del self._sums[next(iter(self._sums))]

    def fit(self, name: str) -> Fit | None:
        """The line of a name, or None before its first batch."""
        sums = self._sums.get(name)
        return sums.fit() if sums is not None else None

    def fit_all(self) -> Fit | None:
        """The line of all names together, for one that has not been seen; None before any batch."""
        total = _Sums()
        for sums in self._sums.values():
            total = total.plus(sums)
        return total.fit() if total.batches else None


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over batches, enough for a weighted least-squares line of seconds over tokens."""

    batches: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    @classmethod
    def one(cls, tokens: int, seconds: float) -> _Sums:
        return cls(1.0, tokens, seconds, float(tokens * tokens), tokens * seconds)

    def faded(self, by: float) -> _Sums:
        return _Sums(
            self.batches * by,
            self.tokens * by,
            self.seconds * by,
            self.squares * by,
            self.products * by,
        )

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.batches + other.batches,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.squares + other.squares,
            self.products + other.products,
        )

    def fit(self) -> Fit:
        """The line; it leans on an assumption as far as the sizes were the same."""
        ratio = self.seconds / self.tokens
        mean = self.tokens / self.batches
        spread = self.squares / self.batches - mean * mean
        together = self.products / self.batches - mean * self.seconds / self.batches
        prior = _PRIOR * mean * mean
        assumed = ratio * min(1.0, mean / _PROPORTIONAL_TOKENS)
        slope = min(max((together + prior * assumed) / (spread + prior), 0.0), ratio)
        overhead = max(self.seconds / self.batches - slope * mean, 0.0)
        return Fit(overhead, slope, self.squares / self.tokens)
