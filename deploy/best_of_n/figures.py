"""What is made of the answers' scores. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guerdon.trainer.common.measuring.statistics import Estimate, estimate

Scores = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the gateway served for one question."""

    score: float
    tokens: int
    """All that were drawn."""
    seconds: float
    scores: tuple[float, ...]
    """Those of the candidates that were drawn to their end."""
    texts: tuple[str, ...] = ()
    """Of the same candidates, where they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a way to ask came to, over all questions."""

    reward: Estimate
    gained: float
    """The part of best-of-16's gain over one answer that it reaches."""
    gained_error: float
    """Its standard error."""
    tokens: float
    """Drawn for an answer, in the mean."""
    tokens_part: float
    """Of best-of-16's."""
    seconds: float
    """Until the answer, the median."""
    promised: float | None = None
    """The mean reward that best-of-16's candidates promise for as many."""


def expected_best(scores: Sequence[float], n: int) -> float:
    """The mean of the best of n of these scores, over all choices of n of them.

    The k-th smallest of N is the best in C(k - 1, n - 1) of the C(N, n) choices.
    """
    ranked = enumerate(sorted(scores))
    return sum(score * math.comb(k, n - 1) for k, score in ranked) / math.comb(len(scores), n)


def figures(
    way: Sequence[Answer], one: Sequence[Answer], most: Sequence[Answer], n: int | None = None
) -> Figures:
    """What a way to ask came to.

    Args:
        way: its answers, question by question.
        one: the answers of a single candidate each.
        most: those of best-of-16.
        n: candidates of the way, if it is best-of-n.
    """
    gains = [b.score - a.score for a, b in zip(one, most, strict=True)]
    own = [b.score - a.score for a, b in zip(one, way, strict=True)]
    gain, part = statistics.fmean(gains), statistics.fmean(own) / statistics.fmean(gains)
    # The linearised ratio's standard error: questions vary in both means together.
    left = estimate([mine - part * all_of_it for mine, all_of_it in zip(own, gains, strict=True)])
    tokens = statistics.fmean(each.tokens for each in way)
    return Figures(
        reward=estimate([each.score for each in way]),
        gained=part,
        gained_error=(left.se or 0.0) / abs(gain),
        tokens=tokens,
        tokens_part=tokens / statistics.fmean(each.tokens for each in most),
        seconds=statistics.median(each.seconds for each in way),
        promised=None
        if n is None
        else statistics.fmean(expected_best(each.scores, n) for each in most),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """What a cascade came to, over all questions."""

    asked: float
    """The part of the candidates that the large model was asked for."""
    close: float
    """The part of the questions for which it was asked at all."""
    disagreed: float
    """The part of the questions where another answer than the large model's best was served."""
    lost: float
    """How much less the large model thinks of what was served than of its best, in the mean."""


def cascade(small: Sequence[Scores], large: Sequence[Scores], margin: float) -> Cascade:
    """What a cascade comes to that asks the large model within a margin of the small one's best.

    Args:
        small: the small model's scores of each question's candidates.
        large: the large model's of the same.
        margin: as the gateway takes it.
    """
    asked = questions = disagreed = 0
    lost = []
    for cheap, dear in zip(small, large, strict=True):
        close = [place for place, score in enumerate(cheap) if score >= max(cheap) - margin]
        if len(close) > 1:
            asked += len(close)
            questions += 1
        served = max(dear[place] for place in close)
        disagreed += served < max(dear)
        lost.append(max(dear) - served)
    candidates = sum(len(each) for each in large)
    return Cascade(
        asked=asked / candidates,
        close=questions / len(large),
        disagreed=disagreed / len(large),
        lost=statistics.fmean(lost),
    )


def as_rows(found: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """The figures as the cells of a table."""
    return [
        (
            name,
            f"{each.reward.mean:+.3f} ± {(each.reward.high or 0) - each.reward.mean:.3f}",
            "" if each.promised is None else f"{each.promised:+.3f}",
            f"{each.gained:.2f} ± {each.gained_error:.2f}",
            f"{each.tokens:.0f}",
            f"{each.tokens_part:.2f}",
            f"{each.seconds:.2f}",
        )
        for name, each in found.items()
    ]
