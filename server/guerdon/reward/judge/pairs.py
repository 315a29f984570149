"""Answers ranked by a judge that compares two at a time, each pair in both orders.

Judges prefer the answer that they read first, or the one they read last. So a preference counts
only where both orders agree on it; where they part, the pair is a tie, and the answer's score says
for how many of its pairs that was so.

    score_i = 1/(n − 1) · Σ_j o_ij      o_ij: 1 if i is better, -1 if j is, 0 for a tie
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from guerdon.reward.encoding.comparisons import MAX_CANDIDATES as MAX_CANDIDATES
from guerdon.reward.encoding.comparisons import ordered_pairs as ordered_pairs
from guerdon.reward.types import ResponseScore

DISAGREEMENT = "order_disagreement"
"""The attribute that holds the share of an answer's pairs in which the two orders part."""


def compared(votes: Sequence[Sequence[float]]) -> list[ResponseScore]:
    """One score for each answer, between -1 and 1, 0 in the mean.

    Args:
        votes: on each of the `ordered_pairs`, 1 for its first answer, -1 for its second, 0 for
            neither.
    """
    count = round((1 + (1 + 4 * len(votes)) ** 0.5) / 2)
    pairs = dict(zip(ordered_pairs(count), map(fmean, votes), strict=True))
    scores = []
    for i in range(count):
        outcomes = [(pairs[i, j], -pairs[j, i]) for j in range(count) if j != i]
        agreed = [_sign(first) == _sign(second) for first, second in outcomes]
        margins = [
            fmean(both) if same else 0.0 for both, same in zip(outcomes, agreed, strict=True)
        ]
        scores.append(
            ResponseScore(score=fmean(margins), attributes=(1.0 - fmean(map(float, agreed)),))
        )
    return scores


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
