"""Answers ranked by comparing them two by two: which pairs are asked for, and what they amount to.

A pairwise model says by how much it prefers the first of two answers to the second, and the
order in which it reads them matters. So every ordered pair is asked for, n·(n − 1) of n
answers, and an answer's score is how much it is preferred to the others in both orders:

    score_i = 1/n · Σ_j (m_ij − m_ji)        m_ij the model's output for (i, j), m_ii = 0

as LLM-Blender ranks by default (Jiang et al., arXiv:2306.02561;
`get_scores_from_cmps(policy="max_logits")` in github.com/yuchenlin/LLM-Blender,
llm_blender/gpt_eval/utils.py). The scores of one ranking sum to 0 and mean nothing beside
those of another.

A judge says only which of two it prefers, and judges prefer the answer that they read first, or the
one they read last. So its preference counts only where both orders agree on it; where they part,
the pair is a tie, and the answer's score says for how many of its pairs that was so.

    score_i = 1/(n − 1) · Σ_j o_ij      o_ij: 1 if i is better, -1 if j is, 0 for a tie
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from guerdon.reward.types import EncodedItem, ResponseScore

MAX_CANDIDATES = 128
"""Most answers that are compared: 16,256 comparisons."""


def ordered_pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of different places below `count`, in the order in which they are computed."""
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def scores_of_candidates(
    item: EncodedItem, compared: Sequence[ResponseScore]
) -> list[ResponseScore]:
    """One score for each candidate.

    Args:
        item: with `candidates`.
        compared: of each of its sequences, which are the `ordered_pairs`.
    """
    count = len(item.candidates)
    margins = np.zeros((count, count))
    for (i, j), score in zip(ordered_pairs(count), compared, strict=True):
        margins[i, j] = score.score
    # Infinities are for the caller to refuse, and so is the NaN of their difference.
    with np.errstate(invalid="ignore"):
        totals = (margins - margins.T).mean(axis=1)
    return [
        dataclasses.replace(compared[0], score=float(total), token_count=tokens, reused_tokens=0)
        for total, tokens in zip(totals, item.candidates, strict=True)
    ]


DISAGREEMENT = "order_disagreement"
"""The attribute that holds the share of an answer's pairs in which the two orders part."""


def scores_by_votes(votes: Sequence[Sequence[float]]) -> list[ResponseScore]:
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
