"""The arithmetic of choosing against closed forms and order statistics of the same samples."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats

from guerdon.gateway.strategies import choosing
from guerdon.gateway.strategies.final_answers import final_answer
from guerdon.gateway.types import AnswerForm

SCORES = [0.3, -1.2, 2.0, 0.3, 1.1]


def test_best_first_is_the_order_statistics_and_keeps_ties_in_order() -> None:
    drawn = np.random.default_rng(0).normal(size=64).tolist()
    order = choosing.best_first(drawn)
    assert [drawn[i] for i in order] == sorted(drawn, reverse=True)
    assert choosing.best_first(SCORES) == [2, 4, 0, 3, 1]


def test_softmax_is_exact() -> None:
    """exp of logarithms of small whole numbers are those numbers."""
    found = choosing.softmax([math.log(k) for k in (1, 2, 5)], 1.0)
    assert found == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-12)
    sharp = choosing.softmax([math.log(k) for k in (1, 2, 5)], 0.5)
    assert sharp == pytest.approx([1 / 30, 4 / 30, 25 / 30], abs=1e-12)
    assert choosing.softmax([1e6, 1e6 - 1e5], 1.0) == [1.0, 0.0]


def plackett_luce(order: tuple[int, ...], weights: tuple[int, ...]) -> Fraction:
    """The probability of an order, by its definition."""
    found, left = Fraction(1), list(order)
    while left:
        found *= Fraction(weights[left[0]], sum(weights[i] for i in left))
        left.pop(0)
    return found


def test_soft_orders_come_as_often_as_they_must() -> None:
    weights, count = (1, 2, 5), 20_000
    scores = [math.log(w) for w in weights]
    chance = random.Random(3)
    seen = Counter(tuple(choosing.softly_first(scores, 1.0, chance)) for _ in range(count))
    orders = list(itertools.permutations(range(3)))
    expected = [float(plackett_luce(order, weights)) * count for order in orders]
    assert sum(expected) == pytest.approx(count)
    assert stats.chisquare([seen[order] for order in orders], expected).pvalue > 0.01


class Numbers(random.Random):
    """Gives the numbers that it is told."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


@pytest.mark.parametrize(
    ("uniform", "first"), [(0.0, 0), (0.124, 0), (0.126, 1), (0.374, 1), (0.376, 2), (0.9999, 2)]
)
def test_a_number_falls_to_its_part_of_the_softmax(uniform: float, first: int) -> None:
    scores = [math.log(k) for k in (1, 2, 5)]
    assert choosing.softly_first(scores, 1.0, Numbers(uniform, 0.0, 0.0))[0] == first


def test_the_expected_gain_is_the_integral_that_it_stands_for() -> None:
    for scores in (SCORES, [0.0, 1.0], [5.0, 5.0, 5.0, 4.0]):
        mean, deviation = np.mean(scores), np.std(scores, ddof=1)
        best = max(scores)

        def gain(x: float, best: float = best, m: float = mean, s: float = deviation) -> float:
            return (x - best) / s * float(stats.norm.pdf(x, m, s))

        expected, _ = integrate.quad(gain, best, best + 12 * deviation)
        assert choosing.expected_gain(scores) == pytest.approx(expected, abs=1e-9)
    assert choosing.expected_gain([1.0]) == math.inf
    assert choosing.expected_gain([2.0, 2.0, 2.0]) == 0.0


def test_weighted_majority_by_hand() -> None:
    answers = ["4", "5", "4", None, "5", "6"]
    weights = [0.5, 0.9, 0.25, 9.0, 0.1, 0.75]
    votes = choosing.vote(answers, weights)
    assert list(votes) == ["5", "4", "6"]  # 4 and 6 tie: 4 was voted for first
    assert votes == pytest.approx({"5": 1.0, "4": 0.75, "6": 0.75})
    assert choosing.by_vote(answers, weights, votes) == [1, 4, 0, 2, 5, 3]


def test_what_votes_weigh() -> None:
    assert choosing.vote_weight(-3.0, "one") == 1.0
    assert choosing.vote_weight(math.log(3), "sigmoid") == pytest.approx(0.75)
    assert choosing.vote_weight(-math.log(3), "sigmoid") == pytest.approx(0.25)
    assert choosing.vote_weight(-1e4, "sigmoid") == 0.0
    assert choosing.vote_weight(0.4, "score") == 0.4
    with pytest.raises(ValueError, match="negative"):
        choosing.vote_weight(-0.1, "score")


def test_what_is_kept_and_what_is_close() -> None:
    assert choosing.kept(SCORES, 0.5, 0) == {0, 2, 4}  # rounded up
    assert choosing.kept(SCORES, 0.1, 0) == {2}
    assert choosing.kept(SCORES, 0.1, 2) == {2, 4}
    assert choosing.kept([], 0.5, 1) == set()
    assert choosing.close_calls(SCORES, 1.0) == [2, 4]
    assert choosing.close_calls(SCORES, 0.0) == [2]
    assert choosing.close_calls(SCORES, 10.0) == [2, 4, 0, 3, 1]


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ("boxed", r"so \boxed{\frac{1}{2}} and \boxed{ 0.50 }.", Fraction(1, 2)),
        ("boxed", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1", None),
        ("boxed", "it is 12", None),
        ("boxed", r"\boxed{}", None),
        ("boxed", r"\boxed{1/2}", Fraction(1, 2)),
        ("boxed", r"\boxed{- 1 / 2}", Fraction(-1, 2)),
        ("boxed", r"\boxed{1/0}", "1/0"),
        ("boxed", r"\boxed{1, 234}", "1,234"),
        ("boxed", r"\boxed{1,234}", Fraction(1234)),
        ("boxed", r"\boxed{$ 7. $}", Fraction(7)),
        ("number", "in 2020-05", Fraction(5)),
        ("number", "from 3 to -5", Fraction(-5)),
        ("number", "it is 3/4.", Fraction(3, 4)),
        ("number", "from 3 to 1,234.50", Fraction(2469, 2)),
        ("number", "it is -7.", Fraction(-7)),
        ("number", "it is .5", Fraction(1, 2)),
        ("number", "none", None),
        ("number", "9" * 5000, "9" * 5000),
        ("line", "first\n Paris. \n\n", "Paris"),
        ("line", " \n", None),
    ],
)
def test_final_answers(form: AnswerForm, text: str, found: object) -> None:
    assert final_answer(text, form) == found
