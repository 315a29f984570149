"""How well right steps are told from wrong ones: pure functions, in numpy.

Steps of one solution are not independent, nor are solutions of one problem: intervals are over
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from guerdon.trainer.common.measuring.measures import (
    Z95,
    Bounded,
    Floats,
    Ints,
    Proportion,
    proportion,
    ranks,
    sigmoid,
    wilson,
)

AGGREGATE: Final[dict[str, Callable[[Floats], float]]] = {
    "min": lambda steps: float(steps.min()),
    "mean": lambda steps: float(steps.mean()),
    "last": lambda steps: float(steps[-1]),
    "product": lambda steps: float(-np.logaddexp(0.0, -steps).sum()),
}
"""The server's ways to make a solution's score of the raw scores of its steps."""


def share(hits: Floats, owners: Ints) -> Bounded:
    """A share over all steps, with an interval over prompts.

    Args:
        hits: 1 or 0 for each step.
        owners: the prompt of each step.
    """
    found = proportion(hits, owners)
    if len(np.unique(owners)) < 2:
        return Bounded(found.value, None, None, found.n)
    return Bounded(found.value, found.low, found.high, found.n)


def auc(scores: Floats, right: Floats, owners: Ints) -> Bounded | None:
    """Chance that a right step scores above a wrong one, ties half; None without both.

    The interval is that of clustered data (Obuchowski 1997, Biometrics 53); with one step in
    every cluster, DeLong's (1988). Where all are in order it would have no width: then it is
    Wilson's for the number of prompts that have a step of the rarer side.
    """
    good, bad = right == 1, right == 0
    m, n = int(good.sum()), int(bad.sum())
    if not m or not n:
        return None
    everyone = ranks(scores)
    above = np.empty(len(scores))
    above[good] = (everyone[good] - ranks(scores[good])) / n
    above[bad] = 1 - (everyone[bad] - ranks(scores[bad])) / m
    value = float(above[good].mean())
    _, place = np.unique(owners, return_inverse=True)
    x, y = (np.bincount(place, np.where(side, above - value, 0.0)) for side in (good, bad))
    with_x, with_y = (len(np.unique(place[side])) for side in (good, bad))
    if with_x < 2 or with_y < 2:
        return Bounded(value, None, None, m + n)
    clusters = len(x)
    variance = (
        with_x / (with_x - 1) * float((x * x).sum()) / m**2
        + with_y / (with_y - 1) * float((y * y).sum()) / n**2
        + 2 * clusters / (clusters - 1) * float((x * y).sum()) / (m * n)
    )
    if variance <= 0:
        return _without_spread(value, min(with_x, with_y), m + n)
    half = Z95 * math.sqrt(variance)
    return Bounded(value, max(0.0, value - half), min(1.0, value + half), m + n)


def _without_spread(value: float, clusters: int, n: int) -> Bounded:
    """All in order, or none: as if each of the rarer side's prompts were one trial."""
    if value not in (0.0, 1.0):  # all tie
        return Bounded(value, None, None, n)
    return Bounded(value, *wilson(value, clusters), n)


def calibration(scores: Floats, right: Floats, bins: int = 10) -> dict[str, Any]:
    """Whether σ(score) is the chance that a step is right, over bins of it from 0 to 1.

    Returns:
        `ece`, `brier` (mean squared error of the probability), `log_loss`, and the `bins`.
    """
    chance = sigmoid(scores)
    place = np.minimum((chance * bins).astype(int), bins - 1)
    found = []
    for i in range(bins):
        inside = place == i
        n = int(inside.sum())
        found.append(
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "n": n,
                "probability": float(chance[inside].mean()) if n else 0.0,
                "right": float(right[inside].mean()) if n else 0.0,
            }
        )
    signed = np.where(right == 1, scores, -scores)
    return {
        "ece": sum(b["n"] * abs(b["probability"] - b["right"]) for b in found) / len(scores),
        "brier": float(((chance - right) ** 2).mean()),
        "log_loss": float(np.logaddexp(0.0, -signed).mean()),
        "bins": found,
    }


def first_errors(
    scores: Sequence[Floats], right: Sequence[Floats], prompts: Ints
) -> dict[str, Any]:
    """Whether the first wrong step of each solution is found (ProcessBench, arXiv:2412.06559).

    A step is called wrong when its score is below 0, that is, σ below one half.

    Returns:
        `erroneous`: in what share of the solutions with an error its first one was named;
        `correct`: what share of the others was passed; `f1`, their harmonic mean.
    """
    named = [_first(found < 0) for found in scores]
    true = [_first(labels == 0) for labels in right]
    hits = np.array([one == other for one, other in zip(named, true, strict=True)])
    wrong = np.array([place is not None for place in true])
    erroneous, correct = (_proportion(hits[side], prompts[side]) for side in (wrong, ~wrong))
    f1 = None
    if erroneous and correct:
        total = erroneous.value + correct.value
        f1 = 2 * erroneous.value * correct.value / total if total else 0.0
    return {
        "erroneous": asdict(erroneous) if erroneous else None,
        "correct": asdict(correct) if correct else None,
        "f1": f1,
    }


def _proportion(hits: npt.NDArray[np.bool_], prompts: Ints) -> Proportion | None:
    return proportion(hits.astype(np.float64), prompts) if len(hits) else None


def _first(wrong: npt.NDArray[np.bool_]) -> int | None:
    found = np.flatnonzero(wrong)
    return int(found[0]) if len(found) else None
