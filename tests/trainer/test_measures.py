"""The measures against closed forms and plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from guerdon.trainer.common.measuring.measures import (
    accuracy,
    calibration,
    length_bias,
    pearson,
    proportion,
    sigmoid,
    t_quantile,
    wilson,
)
from guerdon.trainer.common.measuring.statistics import share as prompt_share


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = proportion(np.arange(n) < successes)
        assert found.value == successes / n
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    with pytest.raises(ValueError, match="at least one"):
        proportion(np.zeros(0))


def test_trials_that_repeat_each_other_count_once() -> None:
    """Copies of every trial under its prompt say no more than the trials did, but for t."""
    hits = (np.arange(40) % 3 == 0).astype(float)
    once = wilson(hits.mean(), 39.0, t_quantile(0.975, 39))
    many = proportion(np.repeat(hits, 7), np.repeat(np.arange(40), 7))
    assert (many.low, many.high) == pytest.approx(once, abs=1e-12)
    assert many.n == 280
    alone = proportion(np.array([1.0, 0.0, 1.0]), np.zeros(3, dtype=np.int64))
    assert (alone.value, alone.low, alone.high) == (pytest.approx(2 / 3), 0.0, 1.0)


CASES = [
    # true share, correlation within a prompt, prompts, trials of each
    (0.5, 0.2, 12, 28), (0.5, 0.6, 30, 4), (0.7, 0.0, 20, 8), (0.1, 0.6, 10, 28),
    (0.02, 0.6, 100, 4), (0.02, 0.2, 30, 28), (0.98, 0.6, 100, 4), (0.9, 1.0, 30, 8),
]  # fmt: skip


@pytest.mark.parametrize(("share", "alike", "prompts", "each"), CASES)
def test_an_interval_holds_the_true_share_as_often_as_it_says(
    share: float, alike: float, prompts: int, each: int
) -> None:
    """Beta-binomial trials: independent ones' interval would hold it half the time."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(prompts), each)
    found = {"clustered": 0, "prompts' means": 0, "independent": 0}
    draws = 600
    for _ in range(draws):
        if alike == 1:
            chances = (rng.random(prompts) < share).astype(float)
        else:
            size = 1 / max(alike, 1e-6) - 1
            chances = rng.beta(share * size, (1 - share) * size, prompts)
        hits = (rng.random(prompts * each) < np.repeat(chances, each)).astype(float)
        means = hits.reshape(prompts, each).mean(1)
        of_means = prompt_share(means.tolist(), per_prompt=each)
        assert of_means.low is not None
        assert of_means.high is not None
        for name, (low, high) in {
            "clustered": (proportion(hits, owner).low, proportion(hits, owner).high),
            "prompts' means": (of_means.low, of_means.high),
            "independent": wilson(float(hits.mean()), len(hits)),
        }.items():
            found[name] += low <= share <= high
    coverage = {name: count / draws for name, count in found.items()}
    print(coverage)
    assert coverage["clustered"] >= 0.92, coverage
    assert coverage["prompts' means"] == pytest.approx(coverage["clustered"], abs=0.01)
    if alike > 0.1 and each > 4 and 0.1 <= share <= 0.9:
        assert coverage["independent"] < 0.7


def test_noise_is_seldom_called_above_chance() -> None:
    """Pairs of eight answers to each of 20 prompts, scored at random: 28 pairs share a prompt."""
    rng = np.random.default_rng(1)
    first, second = np.triu_indices(8, 1)
    owner = np.repeat(np.arange(20), 28)
    called = {"clustered": 0, "independent": 0}
    for _ in range(600):
        truth, score = rng.normal(size=(2, 20, 8))
        right = np.sign(truth[:, first] - truth[:, second])
        delta = ((score[:, first] - score[:, second]) * right).ravel()
        called["clustered"] += accuracy(delta, owner).low > 0.5
        called["independent"] += accuracy(delta).low > 0.5
    assert called["independent"] / 600 > 0.06
    assert called["clustered"] / 600 < 0.04


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
