"""One policy's answers against another's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from guerdon.trainer.common.measuring.statistics import Estimate

Scores = Mapping[int, Sequence[float]]
"""The score of each completion, by its prompt's index."""


def win_rates(ours: Scores, theirs: Scores) -> dict[int, float]:
    """How likely an answer of ours scores above one of theirs, by prompt; a tie counts half.

    Of each prompt all pairs are compared: the Mann–Whitney U over the number of pairs.

    Raises:
        ValueError: they are not of the same prompts.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("the two are not of the same prompts")
    return {index: _probability(scores, theirs[index]) for index, scores in ours.items()}


def _probability(ours: Sequence[float], theirs: Sequence[float]) -> float:
    above = np.subtract.outer(np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def reward_per_kl(
    reward: Estimate, baseline: Estimate | None, kl: Estimate, *, of_reference: bool
) -> tuple[float | None, str]:
    """Reward gained for each nat of divergence, or why it can't be told.

    Args:
        reward: of the policy.
        baseline: of the policy that it is compared with, by the same rewards.
        kl: nats per completion of KL(policy ‖ reference).
        of_reference: whether the baseline is an evaluation of the reference.

    Returns:
        The ratio and an empty text, or None and one clause.
    """
    if baseline is None:
        return None, "no baseline is given"
    if not of_reference:
        return None, "the baseline is not an evaluation of the reference, from which KL is measured"
    if kl.low is None or kl.low <= 0:
        return None, "KL is not above 0 beyond its noise"
    return (reward.mean - baseline.mean) / kl.mean, ""
