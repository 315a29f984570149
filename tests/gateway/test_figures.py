"""The figures of `make best-of-n`, held against enumeration and numbers by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest
from deploy.best_of_n.figures import Answer, cascade, expected_best, figures

SCORES = (0.5, -1.0, 2.0, 2.0, 0.0, 3.5)


@pytest.mark.parametrize("n", range(1, 7))
def test_the_promise_of_fewer_candidates_is_the_mean_over_all_choices_of_them(n: int) -> None:
    best = [max(chosen) for chosen in itertools.combinations(SCORES, n)]
    assert expected_best(SCORES, n) == pytest.approx(statistics.fmean(best))


def test_a_ways_part_of_the_gain_and_of_the_tokens() -> None:
    def answers(*scores: float, tokens: int) -> list[Answer]:
        return [Answer(score=s, tokens=tokens, seconds=s, scores=(s,)) for s in scores]

    found = figures(
        answers(1.0, 2.5, tokens=40), answers(0.0, 1.0, tokens=10), answers(2.0, 3.0, tokens=160)
    )
    assert found.reward.mean == 1.75
    assert found.gained == pytest.approx((1.0 + 1.5) / (2.0 + 2.0))
    assert (found.tokens, found.tokens_part, found.seconds) == (40, 0.25, 1.75)
    assert found.promised is None


def test_a_cascade_asks_for_close_calls_and_differs_where_the_best_is_none() -> None:
    small = [(0.0, 1.0, 3.0), (2.0, 1.5, 0.0), (1.0, 0.6, 0.9)]
    large = [(0.0, 5.0, 4.0), (1.0, 2.0, 0.0), (1.0, 0.0, 0.5)]
    found = cascade(small, large, 0.5)
    assert found.asked == pytest.approx((0 + 2 + 3) / 9)  # one candidate alone needs no judgement
    assert found.disagreed == pytest.approx(1 / 3)
    assert found.lost == pytest.approx((1.0 + 0 + 0) / 3)
    everything = cascade(small, large, 10.0)
    assert (everything.asked, everything.disagreed, everything.lost) == (1, 0, 0)
