"""Gains of reward at the same distance from the start. Pure.

Reward rises with the square root of KL and less than that (Gao et al. 2023, arXiv:2210.10760), so
reward for each nat favours whoever moved least. Runs are compared at the smallest of their KLs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from guerdon.trainer.common.measuring.statistics import Estimate
from guerdon.trainer.compare.comparison import LEVEL, Result, at_level


def smallest_kl(results: Sequence[Result]) -> float:
    """The KL, in nats, that every one of the runs reached."""
    return min(_kl(result).mean for result in results)


def gain_at(result: Result, kl: float) -> Estimate:
    """What a run's reward had gained when it was so far from the start.

    Linear in √KL between the run's evaluations; where it has none on these terms, between the start
    and its end. The standard error is that of the gain at the end, with that of KL.

    Args:
        result: with a gain of reward and a KL above 0.
        kl: nats, at most the run's own.
    """
    assert result.before is not None
    end, own = result.gains["reward"], _kl(result)
    start = result.before.reward.mean
    path = [(0.0, 0.0)]
    path += [(math.sqrt(max(0.0, p.kl)), p.reward - start) for p in result.curve]
    path.append((math.sqrt(own.mean), end.mean))
    gain = _first_reached(path, math.sqrt(kl))
    distance_error = gain / 2 * (own.se or 0.0) / own.mean
    return _estimate(gain, math.hypot(end.se or 0.0, distance_error), end.n)


def ahead(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two gains; their errors are taken as independent."""
    error = math.hypot(first.se or 0.0, second.se or 0.0)
    return _estimate(first.mean - second.mean, error, min(first.n, second.n))


def _first_reached(path: Sequence[tuple[float, float]], distance: float) -> float:
    """The gain where a path of (√KL, gain) first comes as far as a distance."""
    for (before, low), (after, high) in pairwise(path):
        if after >= distance:
            part = (distance - before) / (after - before) if after > before else 1.0
            return low + part * (high - low)
    return path[-1][1]


def _estimate(mean: float, se: float, n: int) -> Estimate:
    return at_level(Estimate(mean, se, None, None, n), LEVEL)


def _kl(result: Result) -> Estimate:
    assert result.run.after is not None
    return result.run.after.estimates["kl"]
