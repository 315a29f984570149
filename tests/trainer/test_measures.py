"""The measures against closed forms and plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from guerdon.trainer.measures import (
    accuracy,
    calibration,
    length_bias,
    pearson,
    sigmoid,
    wilson,
)


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(successes, n)
        assert found.value == successes / n
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)
    assert wilson(0, 20).low == 0.0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(20, 20).high == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def test_a_tie_is_not_right() -> None:
    assert accuracy(np.array([1.0, 0.0, -1.0, 2.0])).value == 0.5


def test_sigmoid_does_not_overflow() -> None:
    found = sigmoid(np.array([-1000.0, 0.0, 1.0, 1000.0]))
    assert found == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-1)), 1.0])


def test_a_perfectly_calibrated_model() -> None:
    # Confidence 0.75 and right three times of four; 0.9 and right nine times of ten.
    delta = np.array([math.log(3)] * 3 + [-math.log(3)] + [math.log(9)] * 9 + [-math.log(9)])
    found = calibration(delta)
    assert found.ece == pytest.approx(0.0, abs=1e-12)
    assert found.brier == pytest.approx((4 * 0.75 * 0.25 + 10 * 0.9 * 0.1) / 14)
    assert sum(b.n for b in found.bins) == 14
    assert [b.n for b in found.bins if b.n] == [4, 10]


def test_an_overconfident_model() -> None:
    delta = np.array([40.0, -40.0])
    found = calibration(delta)
    assert found.ece == pytest.approx(0.5)
    assert found.brier == pytest.approx(0.5)
    assert found.log_loss == pytest.approx(20.0)


def test_a_model_that_knows_nothing() -> None:
    found = calibration(np.zeros(10))
    assert found.brier == pytest.approx(0.25)
    assert found.log_loss == pytest.approx(math.log(2))


def test_calibration_against_plain_counting() -> None:
    random = np.random.default_rng(5)
    delta = random.normal(0.5, 1.5, 500)
    total = 0.0
    for i in range(10):
        low, high = 0.5 + 0.05 * i, 0.55 + 0.05 * i
        inside = [d for d in delta if low <= 1 / (1 + math.exp(-abs(d))) < high]
        if inside:
            right = sum(d > 0 for d in inside) / len(inside)
            sure = sum(1 / (1 + math.exp(-abs(d))) for d in inside) / len(inside)
            total += len(inside) / len(delta) * abs(right - sure)
    assert calibration(delta).ece == pytest.approx(total)


def test_pearson_against_numpy() -> None:
    random = np.random.default_rng(6)
    x, y = random.normal(size=50), random.normal(size=50)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, np.ones(50)) is None


def test_length_bias_of_a_model_that_counts_tokens() -> None:
    chosen_tokens = np.array([10.0, 20.0, 30.0, 5.0, 7.0])
    rejected_tokens = np.array([20.0, 10.0, 10.0, 9.0, 7.0])
    found = length_bias(chosen_tokens, rejected_tokens, chosen_tokens, rejected_tokens)
    assert found.correlation == pytest.approx(1.0)
    assert found.delta_correlation == pytest.approx(1.0)
    assert found.chosen_shorter is not None
    assert (found.chosen_shorter.value, found.chosen_shorter.n) == (0.0, 2)
    assert found.chosen_longer is not None
    assert (found.chosen_longer.value, found.chosen_longer.n) == (1.0, 2)
    assert found.equal is not None
    assert (found.equal.value, found.equal.n) == (0.0, 1)


def test_no_pairs_of_a_kind_is_none() -> None:
    same = np.array([3.0, 4.0])
    found = length_bias(np.array([1.0, 2.0]), np.array([0.0, 0.0]), same, same - 1)
    assert found.chosen_shorter is None
    assert found.equal is None
