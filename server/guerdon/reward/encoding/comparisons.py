"""Answers ranked by comparing them two by two: which pairs are asked for, and what they amount to.

A pairwise model says by how much it prefers the first of two answers to the second, and the
order in which it reads them matters. So every ordered pair is asked for, n·(n − 1) of n
answers, and an answer's score is how much it is preferred to the others in both orders:

    score_i = 1/n · Σ_j (m_ij − m_ji)        m_ij the model's output for (i, j), m_ii = 0

as LLM-Blender ranks by default (Jiang et al., arXiv:2306.02561;
`get_scores_from_cmps(policy="max_logits")` in github.com/yuchenlin/LLM-Blender,
llm_blender/gpt_eval/utils.py). The scores of one ranking sum to 0 and mean nothing beside
those of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
