"""How far predicted numbers are from the true ones: pure functions, in numpy."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.measures import (
    Z95,
    Bounded,
    Floats,
    pearson,
    ranks,
    t_quantile,
)
from guerdon.trainer.common.measuring.statistics import estimate

_LEAST = 4
"""Rows below which no interval of a correlation can be given."""


def regression(predicted: Floats, true: Floats) -> dict[str, Any]:
    """RMSE, R², correlations and calibration of one attribute.

    Args:
        predicted: one number for each row, shape [N].
        true: the labels, all known.

    Returns:
        `n`; `rmse`, `pearson` and `spearman` with their intervals; `r2`; `calibration`. What
        can't be said (nothing varies, or there are too few rows) is None.
    """
    n = len(true)
    if not n:
        return dict.fromkeys(("rmse", "r2", "pearson", "spearman", "calibration")) | {"n": 0}
    error = (predicted - true) ** 2
    variance = float(true.var())
    return {
        "n": n,
        "rmse": asdict(rmse(error)),
        "r2": 1 - float(error.mean()) / variance if variance > 0 else None,
        "pearson": _as_dict(correlation(predicted, true)),
        "spearman": _as_dict(rank_correlation(predicted, true)),
        "calibration": calibration(predicted, true),
    }


def rmse(squared: Floats) -> Bounded:
    """Root of the mean of squared errors; the interval is Student's for the mean's logarithm."""
    found = estimate(squared.tolist())
    value = math.sqrt(found.mean)
    if found.se is None or not value:
        return Bounded(value, None, None, found.n)
    half = t_quantile(0.975, found.n - 1) * found.se / found.mean / 2
    return Bounded(value, value * math.exp(-half), value * math.exp(half), found.n)


def correlation(x: Floats, y: Floats) -> Bounded | None:
    """Pearson's, with Fisher's interval; None where either does not vary."""
    return _fisher(pearson(x, y), len(x), 1.0)


def rank_correlation(x: Floats, y: Floats) -> Bounded | None:
    """Spearman's, with the interval of Bonett and Wright (2000), eq. 3."""
    found = pearson(ranks(x), ranks(y))
    return _fisher(found, len(x), 1.0 if found is None else 1 + found * found / 2)


def _fisher(r: float | None, n: int, variance: float) -> Bounded | None:
    """atanh r is nearly normal with the variance `variance` / (n - 3)."""
    if r is None:
        return None
    if n < _LEAST:
        return Bounded(r, None, None, n)
    z = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r)))
    half = Z95 * math.sqrt(variance / (n - 3))
    return Bounded(r, math.tanh(z - half), math.tanh(z + half), n)


def calibration(predicted: Floats, true: Floats, bins: int = 10) -> dict[str, Any]:
    """Whether a prediction is what is true on average of the rows that have it.

    Returns:
        `bins` of like size by the prediction, each with `n` and the means of both; `error`, the
        mean distance of the two over bins, weighted by n; `slope` and `intercept` of the truth
        on the prediction (1 and 0 where it is calibrated; None where it does not vary).
    """
    parts = [p for p in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(p)]
    found = [
        {"n": len(p), "predicted": float(predicted[p].mean()), "true": float(true[p].mean())}
        for p in parts
    ]
    error = sum(b["n"] * abs(b["predicted"] - b["true"]) for b in found) / len(true)
    slope = intercept = None
    variance = float(predicted.var())
    if variance > 0:
        slope = float(((predicted - predicted.mean()) * (true - true.mean())).mean()) / variance
        intercept = float(true.mean()) - slope * float(predicted.mean())
    return {"error": error, "slope": slope, "intercept": intercept, "bins": found}


def _as_dict(found: Bounded | None) -> dict[str, Any] | None:
    return asdict(found) if found else None
