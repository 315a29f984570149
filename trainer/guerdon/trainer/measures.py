"""What is measured of a reward model: pure functions of scores, in numpy.

Δ is the chosen answer's score less the rejected one's; under Bradley-Terry the model says
that the chosen one is preferred with probability σ(Δ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % confidence interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Bounded:
    """A number with its 95 % confidence interval, where there are rows enough for one."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of the reliability diagram."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean of σ(|Δ|) in the bin; 0 when it is empty."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the model's stated confidence is from how often it is right."""

    ece: float
    """Expected calibration error: mean |accuracy - confidence| over bins, weighted by n."""
    brier: float
    """Mean of (1 - σ(Δ))²; 0.25 for a model that knows nothing."""
    log_loss: float
    """Mean of -log σ(Δ); 0.693 for a model that knows nothing."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How much of the score is length."""

    correlation: float | None
    """Pearson, of score and answer length in tokens, over all answers."""
    delta_correlation: float | None
    """Pearson, of Δ and the difference in length, over pairs: the prompt cancels out."""
    chosen_shorter: Proportion | None
    """Accuracy where the preferred answer is the shorter one; None without such pairs."""
    chosen_longer: Proportion | None
    equal: Proportion | None


def wilson(successes: int, n: int, z: float = Z95) -> Proportion:
    """A proportion and its Wilson score interval.

    Raises:
        ValueError: n is 0.
    """
    if n <= 0:
        raise ValueError("a proportion needs at least one trial")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Proportion(p, max(0.0, centre - half), min(1.0, centre + half), n)


def accuracy(delta: Floats) -> Proportion:
    """Share of pairs in which the chosen answer scores higher. A tie is not right."""
    return wilson(int((delta > 0).sum()), len(delta))


def sigmoid(x: Floats) -> Floats:
    """σ(x), without overflow."""
    found: Floats = np.exp(-np.logaddexp(0.0, -x))
    return found


def calibration(delta: Floats, bins: int = 10) -> Calibration:
    """Calibration over equal-width bins of the confidence σ(|Δ|), from 0.5 to 1."""
    confidence = sigmoid(np.abs(delta))
    right = (delta > 0).astype(np.float64)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    found = []
    for i in range(bins):
        inside = place == i
        n = int(inside.sum())
        mean = float(confidence[inside].mean()) if n else 0.0
        hits = float(right[inside].mean()) if n else 0.0
        found.append(Bin(float(edges[i]), float(edges[i + 1]), n, mean, hits))
    ece = sum(b.n * abs(b.accuracy - b.confidence) for b in found) / len(delta)
    brier = float(((1 - sigmoid(delta)) ** 2).mean())
    return Calibration(ece, brier, float(np.logaddexp(0.0, -delta).mean()), tuple(found))


@dataclass(frozen=True, slots=True)
class Temperature:
    """What dividing scores by a number would do for calibration (Guo et al. 2017, section 4.2)."""

    value: float
    """T that makes -log σ(Δ/T) least over all pairs; over 1, the model is too sure of itself."""
    log_loss: float
    """Of σ(Δ/T), each half of the pairs with the T of the other half."""
    ece: float
    """The same."""


def temperature(delta: Floats) -> Temperature | None:
    """The temperature that calibrates best; None where none does (all right, or no signal)."""
    halves = [delta[0::2], delta[1::2]]
    whole, *each = (_temperature(part) for part in (delta, *halves))
    if whole is None or each[0] is None or each[1] is None:
        return None
    scaled = np.concatenate([halves[0] / each[1], halves[1] / each[0]])
    found = calibration(scaled)
    return Temperature(whole, found.log_loss, found.ece)


def _temperature(delta: Floats) -> float | None:
    """Where the derivative of the (convex) mean of -log σ(aΔ) is zero, as 1/a."""

    def slope(log_a: float) -> float:
        a = math.exp(log_a)
        return -float((delta * sigmoid(-a * delta)).mean())

    low, high = -7.0, 7.0
    if not len(delta) or slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return math.exp(-low)


def pearson(x: Floats, y: Floats) -> float | None:
    """Pearson's correlation; None when either does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((dx * dx).sum()) * float((dy * dy).sum()))
    return float((dx * dy).sum()) / scale if scale > 0 else None


def ranks(values: Floats) -> Floats:
    """Ranks from 0, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts + 1) / 2)[place]
    return found


def length_bias(
    chosen: Floats, rejected: Floats, chosen_tokens: Floats, rejected_tokens: Floats
) -> LengthBias:
    """How scores go with answer lengths, over pairs in the same order in all four."""
    delta, longer = chosen - rejected, chosen_tokens - rejected_tokens

    def where(mask: npt.NDArray[np.bool_]) -> Proportion | None:
        return accuracy(delta[mask]) if mask.any() else None

    return LengthBias(
        correlation=pearson(
            np.concatenate([chosen, rejected]), np.concatenate([chosen_tokens, rejected_tokens])
        ),
        delta_correlation=pearson(delta, longer),
        chosen_shorter=where(longer < 0),
        chosen_longer=where(longer > 0),
        equal=where(longer == 0),
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, and percentiles from the least to the largest; empty without values."""
    if not len(values):
        return {}
    found = np.percentile(values, (0, 10, 50, 90, 99, 100)).tolist()
    names = ("least", "p10", "p50", "p90", "p99", "largest")
    return {"mean": float(np.mean(values))} | dict(zip(names, found, strict=True))
