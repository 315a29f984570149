"""Process rewards: a score at the marker that ends each step.

A head with one label gives the step's raw logit. A head with two gives the raw log-odds
that the step is good, logit[1] − logit[0]: the same number before its sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.network import NetworkReward
from guerdon.reward.types import EncodedItem, ResponseScore, StepScore

Steps = npt.NDArray[np.float64]
"""Raw scores of a response's steps, shape [S], S ≥ 1."""


def log_product(steps: Steps) -> float:
    """The logarithm of Π σ(sᵢ): of the probability that every step is right.

    The product of the steps' probabilities is what "Let's Verify Step by Step"
    (arXiv:2305.20050, section 2.6) ranks by; its logarithm Σ log σ(sᵢ) ranks the same
    and does not underflow. It is never positive.
    """
    return float(-np.logaddexp(0.0, -steps).sum())


AGGREGATE: Final[dict[str, Callable[[Steps], float]]] = {
    "min": lambda steps: float(steps.min()),
    "mean": lambda steps: float(steps.mean()),
    "last": lambda steps: float(steps[-1]),
    "product": log_product,
}


def step_scores(logits: Logits) -> Steps:
    """One raw score for each step, from logits [S, 1] or [S, 2]."""
    wide = logits.astype(np.float64)
    return wide[:, 0] if wide.shape[1] == 1 else wide[:, 1] - wide[:, 0]


class ProcessReward(NetworkReward):
    """A score for each step, and one for the response by `ModelInfo.step_aggregation`."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        steps = step_scores(logits)
        places = item.readout[j]
        # Nothing to aggregate is not a score of zero: not-a-number, so that it is refused.
        score = AGGREGATE[self.info.step_aggregation](steps) if len(steps) else float("nan")
        return ResponseScore(
            score=score,
            steps=tuple(
                StepScore(float(s), int(place)) for s, place in zip(steps, places, strict=True)
            ),
        )
