"""Several models' scores of one response, and how far they part.

Conservative aggregation of an ensemble (the minimum, or mean − λ·std) makes
over-optimising a reward model harder (Coste et al., arXiv:2310.02743).

A pairwise loss leaves each member a zero of its own, so members are compared only after each
score has lost what its member's mean over the training set is above the members' average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    EncodedItem,
    ModelInfo,
    ResponseScore,
    RewardModel,
    ScoreItem,
    Truncation,
)

Members = npt.NDArray[np.float64]
"""The members' scores of one response, shape [M]."""

AGGREGATE: Final[dict[str, Callable[[Members, float], float]]] = {
    "mean": lambda scores, weight: float(scores.mean()),
    "min": lambda scores, weight: float(scores.min()),
    "mean_minus_std": lambda scores, weight: float(scores.mean() - weight * scores.std()),
}
"""Aggregations by name: from the members' scores and λ to one. The standard deviation is the
population's (ddof 0): of these members, not an estimate over others."""


class EnsembleReward:
    """A `RewardModel` made of others, all of which read the same tokens.

    Args:
        info: with `members` and `aggregation` set.
        members: at least one; the first one's encoder serves for all.
        std_weight: λ in mean − λ·std.

    Members whose training mean is not known are combined as they are;
    `check_members` refuses to compare such.
    """

    def __init__(
        self, info: ModelInfo, members: Sequence[RewardModel], *, std_weight: float = 1.0
    ) -> None:
        self.info = info
        self._members = tuple(members)
        self._std_weight = std_weight
        means = [member.info.mean for member in self._members]
        known = np.array([mean for mean in means if mean is not None])
        self._offsets: Members = (
            known - known.mean() if len(known) == len(means) else np.zeros(len(means))
        )

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """Render and tokenise; see `RewardModel.encode`."""
        return self._members[0].encode(
            item, truncation, reject_control_tokens=reject_control_tokens
        )

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        """Compute one batch with every member; see `RewardModel.score`."""
        batches = [member.score(items) for member in self._members]
        scores = [
            [self._combine([batch.items[i][j] for batch in batches]) for j in range(item.sequences)]
            for i, item in enumerate(items)
        ]
        return BatchScores(items=scores, stats=join_stats([batch.stats for batch in batches]))

    def close(self) -> None:
        """Free the memory."""
        for member in self._members:
            member.close()

    def _combine(self, found: Sequence[ResponseScore]) -> ResponseScore:
        scores = np.array([score.score for score in found])
        with np.errstate(invalid="ignore"):  # infinite scores are for the dispatcher to refuse
            alike = scores - self._offsets
            score = AGGREGATE[self.info.aggregation](alike, self._std_weight)
            spread = float(alike.std())
        return dataclasses.replace(
            found[0],
            score=score,
            steps=(),
            attributes=(),
            members=tuple(scores.tolist()),
            spread=spread,
        )


def join_stats(stats: Sequence[BatchStats]) -> BatchStats:
    """The tokens of all members together; each response counts once."""
    first, *others = stats
    return dataclasses.replace(sum(others, first), sequences=first.sequences)
