"""The arithmetic of choosing: pure functions of scores and texts."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from guerdon.gateway.types import VoteWeight

K = TypeVar("K", bound=Hashable)


def best_first(scores: Sequence[float]) -> list[int]:
    """Places of the scores, best first; equal ones stay in their order."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """Probabilities in proportion to exp(score / temperature)."""
    highest = max(scores)
    weights = [math.exp((score - highest) / temperature) for score in scores]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


def softly_first(scores: Sequence[float], temperature: float, chance: random.Random) -> list[int]:
    """Places of the scores, drawn one after the other without putting back.

    Each is drawn by the softmax of those that are left (Plackett and Luce's model).
    """
    left, order = list(range(len(scores))), []
    while left:
        probabilities = softmax([scores[place] for place in left], temperature)
        order.append(left.pop(_drawn(probabilities, chance.random())))
    return order


def _drawn(probabilities: Sequence[float], uniform: float) -> int:
    """The place that a number from [0, 1) falls to."""
    below = 0.0
    for place, probability in enumerate(probabilities):
        below += probability
        if uniform < below:
            return place
    return max(range(len(probabilities)), key=lambda place: probabilities[place])


def vote_weight(score: float, weight: VoteWeight) -> float:
    """How much a candidate's vote weighs.

    Raises:
        ValueError: scores are to weigh as they are, and this one is negative.
    """
    if weight == "one":
        return 1.0
    if weight == "sigmoid":
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
    if score < 0:
        raise ValueError(f"is {score:g}: negative scores can't weigh votes, sigmoid makes them")
    return score


def vote(answers: Sequence[K | None], weights: Sequence[float]) -> dict[K, float]:
    """The weight of each answer, heaviest first; equal ones in the order of their first vote.

    Args:
        answers: final answers; None casts no vote.
        weights: of the votes, one for each answer.
    """
    votes: dict[K, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(weight)
    sums = {answer: math.fsum(cast) for answer, cast in votes.items()}
    return dict(sorted(sums.items(), key=lambda each: -each[1]))


def by_vote(
    answers: Sequence[K | None], scores: Sequence[float], votes: Mapping[K, float]
) -> list[int]:
    """Places best first: by the weight of their answer, then by score; those without one last."""
    place_of: dict[K | None, int] = {answer: place for place, answer in enumerate(votes)}
    place_of[None] = len(votes)
    return sorted(range(len(scores)), key=lambda i: (place_of[answers[i]], -scores[i]))


def expected_gain(scores: Sequence[float]) -> float:
    """How much another draw is expected to add to the best score, in standard deviations.

    Scores are taken as normal, with the mean m and the deviation s (ddof = 1) of those that are
    known. For the best b and z = (b - m) / s it is φ(z) - z (1 - Φ(z)). Infinite for less than
    two scores, of which nothing can be told; 0 where all are equal.
    """
    if len(scores) < 2:
        return math.inf
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
    if deviation == 0:
        return 0.0
    z = (max(scores) - mean) / deviation
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return density - z * math.erfc(z / math.sqrt(2)) / 2


def kept(scores: Sequence[float], part: float, least: int) -> set[int]:
    """Places of the best part of the scores, rounded up, and no fewer than `least`."""
    count = max(least, math.ceil(part * len(scores)))
    return set(best_first(scores)[:count])


def close_calls(scores: Sequence[float], margin: float) -> list[int]:
    """Places of the scores within a margin of the best, best first."""
    order = best_first(scores)
    return [place for place in order if scores[place] >= scores[order[0]] - margin]
