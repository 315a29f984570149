"""Means with their noise. Pure, in NumPy.

Completions of one prompt are not independent, so every interval is over prompts: a prompt's
completions count as one number, their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts, with Student's interval."""

    mean: float
    se: float | None
    """Standard error; None for a single prompt."""
    low: float | None
    """Lower end of the 95 % confidence interval; None for a single prompt."""
    high: float | None
    n: int
    """Prompts."""

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)

    @property
    def rose(self) -> bool:
        """For a difference: whether it lies above 0 beyond its noise."""
        return self.low is not None and self.low > 0

    @property
    def fell(self) -> bool:
        """For a difference: whether it lies below 0 beyond its noise."""
        return self.high is not None and self.high < 0


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of independent values, with Student's t interval.

    Args:
        values: one for each prompt.
        level: of confidence.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(array).all():
        raise ValueError("a value is not a finite number")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    se = float(array.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(0.5 + level / 2, n - 1) * se
    return Estimate(mean, se, mean - half, mean + half, n)


def share(values: Sequence[float], level: float = 0.95) -> Estimate:
    """As `estimate`, of values from 0 to 1: an interval that stays there, and is never empty.

    Where every prompt has 0, or every one 1, Student's interval has no width, though a few prompts
    prove little. Then the far end is that of Wilson's interval for no prompt (or every prompt) of
    n, which holds for the mean too: a prompt's share is at most 1 where it is not 0.

    Raises:
        ValueError: there are none, or one is not from 0 to 1.
    """
    found = estimate(values, level)
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("a share is from 0 to 1")
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    width = z2 / (found.n + z2)
    if found.mean == 0:
        return replace(found, low=0.0, high=width)
    if found.mean == 1:
        return replace(found, low=1 - width, high=1.0)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def paired(
    before: Mapping[int, float], after: Mapping[int, float], level: float = 0.95
) -> Estimate:
    """The mean of after − before over the prompts that both have: their spread cancels out.

    Raises:
        ValueError: they have no prompt in common.
    """
    both = sorted(before.keys() & after.keys())
    return estimate([after[key] - before[key] for key in both], level)


def t_quantile(p: float, df: int) -> float:
    """Student's quantile, within 0.2 % of the true one for every df.

    Exact for 1 and 2 degrees of freedom; else the expansion about the normal's (Abramowitz and
    Stegun, 26.7.5), whose error falls with the fifth power of df.
    """
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / df**i for i, term in enumerate(terms, start=1)))
