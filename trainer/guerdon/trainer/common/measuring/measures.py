"""What is measured of a reward model: pure functions of scores, in numpy.

Δ is the chosen answer's score less the rejected one's; under Bradley-Terry the model says
that the chosen one is preferred with probability σ(Δ).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL = 0.95
"""The level of confidence, where none is named."""
Z95 = float(ndtri(0.975))
"""The normal distribution's 97.5 % quantile."""
FEW = 5
"""Prompts with the rarer outcome that tell how alike a prompt's outcomes are."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % confidence interval, as `proportion` has it."""

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


def t_quantile(p: float, df: float) -> float:
    """The quantile of Student's t distribution."""
    return float(stdtrit(df, p))


def numbered(keys: Iterable[Hashable]) -> Ints:
    """A number for each key, the same for equal ones: which prompt each row has."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)


def wilson(p: float, n: float, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share of n independent trials (Wilson 1927).

    Args:
        p: the share.
        n: trials; need not be whole.
        z: quantile of the confidence that is wanted.
    """
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bound is the share itself, but for rounding.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    return low, 1.0 if p == 1 else min(1.0, centre + half)


def proportion(hits: Floats, prompts: Ints | None = None) -> Proportion:
    """The share of hits, and an interval that holds where several trials share a prompt.

    It is Wilson's for as many independent trials as would vary like these do over prompts (their
    number over Kish's design effect, the variance that of a linearised ratio), with Student's
    quantile for prompts − 1 degrees of freedom: Korn and Graubard 1998; Franco et al. 2019. Where
    hits or misses are seen at fewer than five prompts, that variance can't be told, and all trials
    of a prompt count as one at most. Where no two trials share a prompt, it is Wilson's own.

    Args:
        hits: 1 or 0 (or between: half for a draw), for each trial.
        prompts: of each trial; equal numbers are one prompt. None: each has its own.

    Raises:
        ValueError: there is no trial.
    """
    n = len(hits)
    if not n:
        raise ValueError("a proportion needs at least one trial")
    value = float(hits.mean())
    owner = np.arange(n) if prompts is None else np.unique(prompts, return_inverse=True)[1]
    sizes, sums = np.bincount(owner), np.bincount(owner, weights=hits)
    count = len(sizes)
    if count == n:
        return Proportion(value, *wilson(value, n, float(ndtri(0.5 + LEVEL / 2))), n)
    if count == 1:  # nothing says how much prompts differ
        return Proportion(value, 0.0, 1.0, n)
    residuals = sums - value * sizes
    variance = count / (count - 1) * float((residuals**2).sum()) / n**2
    independent = min(float(n), value * (1 - value) / variance) if variance else float(count)
    if min(int((sums > 0).sum()), int((sums < sizes).sum())) < FEW:
        independent = min(independent, float(count))
    quantile = t_quantile(0.5 + LEVEL / 2, count - 1)
    return Proportion(value, *wilson(value, independent, quantile), n)


def accuracy(delta: Floats, prompts: Ints | None = None) -> Proportion:
    """Share of pairs in which the chosen answer scores higher. A tie is not right.

    Args:
        delta: Δ of each pair.
        prompts: of each pair; equal numbers are one prompt. None: each has its own.
    """
    return proportion((delta > 0).astype(np.float64), prompts)


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
    """The mean of -log σ(Δ/T), each half of the pairs with the T of the other half."""
    ece: float
    """The expected calibration error of σ(Δ/T), likewise by halves."""


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
    """The T = 1/a at which the derivative of the (convex) mean of -log σ(aΔ) is zero."""

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
    chosen: Floats,
    rejected: Floats,
    chosen_tokens: Floats,
    rejected_tokens: Floats,
    prompts: Ints | None = None,
) -> LengthBias:
    """How scores go with answer lengths, over pairs in the same order in all five."""
    delta, longer = chosen - rejected, chosen_tokens - rejected_tokens

    def where(mask: npt.NDArray[np.bool_]) -> Proportion | None:
        if not mask.any():
            return None
        return accuracy(delta[mask], None if prompts is None else prompts[mask])

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
