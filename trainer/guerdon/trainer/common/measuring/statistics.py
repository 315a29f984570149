"""Means with their noise. Pure, in NumPy.

Completions of one prompt are not independent, so every interval is over prompts: a prompt's
completions count as one number, their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from guerdon.trainer.common.measuring.measures import FEW, Floats, Ints, t_quantile, wilson


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
        """The estimate for JSON."""
        return asdict(self)

    @property
    def rose(self) -> bool:
        """Whether a difference lies above 0 beyond its noise."""
        return self.low is not None and self.low > 0

    @property
    def fell(self) -> bool:
        """Whether a difference lies below 0 beyond its noise."""
        return self.high is not None and self.high < 0


def estimate(
    values: Sequence[float] | Floats, level: float = 0.95, prompts: Ints | None = None
) -> Estimate:
    """The mean, with Student's t interval over prompts.

    Args:
        values: independent ones, one for each prompt; or one for each row.
        level: of confidence.
        prompts: of each row, where several share one; the variance is then that of a linearised
            ratio.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(array).all():
        raise ValueError("a value is not a finite number")
    mean, n = float(array.mean()), len(array)
    spread: Floats = array - mean
    if prompts is not None:
        owner = np.unique(prompts, return_inverse=True)[1]
        spread = np.bincount(owner, weights=spread).astype(np.float64)
        n = len(spread)
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    se = math.sqrt(n / (n - 1) * float((spread**2).sum())) / len(array)
    half = t_quantile(0.5 + level / 2, n - 1) * se
    return Estimate(mean, se, mean - half, mean + half, n)


def share(values: Sequence[float], level: float = 0.95, *, per_prompt: float = 1.0) -> Estimate:
    """An estimate of values from 0 to 1, with an interval that suits shares near 0 and 1.

    It is Wilson's, as `measures.proportion` has it, for means of prompts: of as many independent
    trials as would vary like these means do, at most those that there were.

    Args:
        values: one for each prompt, the mean of its trials.
        level: of confidence.
        per_prompt: trials of a prompt; 1 takes all of a prompt's for one.

    Raises:
        ValueError: there are none, or one is not from 0 to 1.
    """
    found = estimate(values, level)
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("a share is from 0 to 1")
    if found.n == 1 or found.se is None:
        return found
    array = np.asarray(values, dtype=np.float64)
    mixed = min(int((array > 0).sum()), int((array < 1).sum()))
    trials = found.n * (per_prompt if mixed >= FEW else 1.0)
    if found.se:
        trials = min(trials, found.mean * (1 - found.mean) / found.se**2)
    low, high = wilson(found.mean, trials, t_quantile(0.5 + level / 2, found.n - 1))
    return replace(found, low=low, high=high)


def paired(
    before: Mapping[int, float], after: Mapping[int, float], level: float = 0.95
) -> Estimate:
    """The mean of after − before over the prompts that both have: their spread cancels out.

    Raises:
        ValueError: they have no prompt in common.
    """
    both = sorted(before.keys() & after.keys())
    return estimate([after[key] - before[key] for key in both], level)
