"""What is measured of ratings and steps, against closed forms and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from guerdon.trainer.common.measuring.measures import wilson
from guerdon.trainer.reward.objectives import regression, step_measures


def test_regression_of_known_numbers() -> None:
    predicted, true = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 1.0, 4.0, 4.0])
    found = regression.regression(predicted, true)
    assert found["rmse"]["value"] == math.sqrt(3 / 4)
    assert found["r2"] == pytest.approx(1 - (3 / 4) / 2.25)
    r = np.corrcoef(predicted, true)[0, 1]
    assert found["pearson"]["value"] == pytest.approx(r)
    assert found["pearson"]["high"] == pytest.approx(math.tanh(math.atanh(r) + 1.959963984540054))
    # Ranks of the truth are 0.5, 0.5, 2.5, 2.5.
    rho = np.corrcoef([0, 1, 2, 3], [0.5, 0.5, 2.5, 2.5])[0, 1]
    assert found["spearman"]["value"] == pytest.approx(rho)


def test_what_can_not_be_said_is_none() -> None:
    flat = regression.regression(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert flat["r2"] is None
    assert flat["pearson"] is None
    assert regression.regression(np.array([]), np.array([]))["rmse"] is None
    two = regression.regression(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    assert two["pearson"] == {"value": pytest.approx(1.0), "low": None, "high": None, "n": 2}
    constant = regression.regression(np.full(9, 2.0), np.arange(9.0))
    assert constant["calibration"]["slope"] is None
    assert constant["pearson"] is None


def test_intervals_of_correlations_cover() -> None:
    """95 of 100 intervals hold the true value, for both correlations."""
    random = np.random.default_rng(0)
    rho = 0.6
    spearman = 6 / math.pi * math.asin(rho / 2)  # of a bivariate normal
    hits = np.zeros(3)
    for _ in range(600):
        x = random.normal(size=60)
        y = rho * x + math.sqrt(1 - rho**2) * random.normal(size=60)
        one, two = regression.correlation(x, y), regression.rank_correlation(x, y)
        error = regression.rmse((x - y) ** 2)
        for i, (found, wanted) in enumerate(
            ((one, rho), (two, spearman), (error, math.sqrt(2 - 2 * rho)))
        ):
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            hits[i] += found.low <= wanted <= found.high
    assert (np.abs(hits / 600 - 0.95) < 0.03).all(), hits / 600


def test_calibration_of_predictions() -> None:
    """Predictions that are twice as far from 3 as they should be have the slope one half."""
    random = np.random.default_rng(0)
    mean = random.normal(3, 1, 20_000)
    true = mean + random.normal(0, 0.5, len(mean))
    right = regression.calibration(mean, true)
    assert (right["slope"], right["intercept"]) == (
        pytest.approx(1, abs=0.02),
        pytest.approx(0, abs=0.05),
    )
    assert right["error"] < 0.02
    assert sum(b["n"] for b in right["bins"]) == len(mean)
    far = regression.calibration(3 + 2 * (mean - 3), true)
    assert far["slope"] == pytest.approx(0.5, abs=0.02)
    assert far["error"] == pytest.approx(math.sqrt(2 / math.pi), rel=0.1)  # E|X| of a normal


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    right = np.array([0.0, 0.0, 1.0, 1.0, 0.0])
    found = step_measures.auc(scores, right, np.arange(5))
    assert found is not None
    assert found.value == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0) / 6)
    assert step_measures.auc(scores, np.ones(5), np.arange(5)) is None


def test_two_steps_in_order_prove_little() -> None:
    found = step_measures.auc(np.arange(4.0), np.array([0.0, 0, 1, 1]), np.arange(4))
    assert found is not None
    assert found.value == 1
    assert found.low == pytest.approx(0.3424, abs=1e-3)  # Wilson's for two of two
    ties = step_measures.auc(np.zeros(4), np.array([0.0, 0, 1, 1]), np.arange(4))
    assert ties is not None
    assert (ties.value, ties.low) == (0.5, None)


def test_steps_that_repeat_each_other_narrow_no_interval() -> None:
    """Each solution's one step, said four times over: as much is known as before."""
    random = np.random.default_rng(0)
    right = (random.random(80) < 0.6).astype(float)
    scores = random.normal(right, 1.0)
    owners = np.arange(80)
    once = step_measures.auc(scores, right, owners)
    often = step_measures.auc(np.repeat(scores, 4), np.repeat(right, 4), np.repeat(owners, 4))
    assert once is not None
    assert often is not None
    assert often.value == pytest.approx(once.value)
    assert often.low == pytest.approx(once.low)
    hits = ((scores > 0) == (right == 1)).astype(float)
    one = step_measures.share(hits, owners)
    four = step_measures.share(np.repeat(hits, 4), np.repeat(owners, 4))
    assert one.low == pytest.approx(four.low, abs=3e-3)  # which knows 80 solutions, not trials
    assert (one.low, one.high) == pytest.approx(wilson(one.value, 80))
    assert step_measures.share(np.ones(8), np.arange(8)).low == pytest.approx(0.6756, abs=1e-3)


def test_intervals_over_solutions_cover() -> None:
    """Steps of a solution go together: intervals over steps would be far too narrow."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        level = np.repeat(random.normal(0, 1, 60), 5)
        owners = np.repeat(np.arange(60), 5)
        right = (random.random(300) < 0.5).astype(float)
        scores = right + level + random.normal(0, 0.5, 300)
        found = step_measures.auc(scores, right, owners)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        wanted = 0.7365  # Φ(1 / √2.5): two steps of different solutions part by N(1, 2.5)
        hits += found.low <= wanted <= found.high
    assert abs(hits / 400 - 0.95) < 0.04


def test_first_errors() -> None:
    scores = [
        np.array([1.0, -1.0, 2.0]),
        np.array([1.0, 1.0]),
        np.array([-1.0, 1.0]),
        np.array([1.0]),
    ]
    right = [np.array([1.0, 0, 0]), np.array([1.0, 0]), np.array([1.0, 1]), np.array([1.0])]
    found = step_measures.first_errors(scores, right, np.arange(4))
    assert found["erroneous"]["value"] == 0.5  # the second is passed, though it has an error
    assert found["correct"]["value"] == 0.5
    assert found["f1"] == 0.5
    alone = step_measures.first_errors(scores[3:], right[3:], np.arange(1))
    assert (alone["erroneous"], alone["f1"]) == (None, None)


def test_calibration_of_steps() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(0, 2, 20_000)
    right = (random.random(len(scores)) < 1 / (1 + np.exp(-scores))).astype(float)
    found = step_measures.calibration(scores, right)
    assert found["ece"] < 0.015
    assert step_measures.calibration(3 * scores, right)["ece"] > 0.1
    known = step_measures.calibration(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    assert (known["brier"], known["log_loss"]) == (0.25, pytest.approx(math.log(2)))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("min", -1.0), ("mean", 0.5), ("last", 2.0), ("product", -1.44015)],
)
def test_steps_amount_to_what_the_server_says(name: str, wanted: float) -> None:
    from guerdon.reward.kinds import network

    steps = np.array([-1.0, 2.0])
    if name == "product":
        wanted = math.log(1 / (1 + math.e)) + math.log(1 / (1 + math.exp(-2)))
    assert step_measures.AGGREGATE[name](steps) == pytest.approx(wanted)
    assert step_measures.AGGREGATE[name](steps) == network.AGGREGATE[name](steps)
