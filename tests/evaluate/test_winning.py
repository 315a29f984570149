"""Win rates, shares, and reward for a nat of KL, by hand."""

from __future__ import annotations

import pytest

from guerdon.trainer.common.measuring.measures import t_quantile, wilson
from guerdon.trainer.common.measuring.statistics import Estimate, estimate, share
from guerdon.trainer.evaluate.policy.winning import reward_per_kl, win_rates


def test_all_pairs_ties_half() -> None:
    ours, theirs = {0: [1.0, 3.0], 4: [2.0]}, {0: [2.0, 1.0, 0.0], 4: [2.0, 5.0]}
    #           1 > 0, 1 = 1; 3 > all                    2 = 2
    assert win_rates(ours, theirs) == {0: 4.5 / 6, 4: 0.5 / 2}
    back = win_rates(theirs, ours)
    assert back == {0: pytest.approx(1 - 4.5 / 6), 4: 0.75}


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same prompts"):
        win_rates({0: [1.0]}, {1: [1.0]})


def test_a_share_stays_within_its_bounds() -> None:
    plain, found = estimate([0, 0, 1.0]), share([0, 0, 1.0])
    assert plain.low is not None
    assert plain.low < 0
    assert found.low is not None
    assert found.high is not None
    assert (found.mean, found.se) == (plain.mean, plain.se)
    assert 0 < found.low < found.mean < found.high < 1
    none, every = share([0.0] * 20), share([1.0] * 20)
    z = t_quantile(0.975, 19)
    assert (none.low, none.high) == (0.0, pytest.approx(z * z / (20 + z * z)))  # 0 of 20, by t
    assert (every.low, every.high) == (pytest.approx(20 / (20 + z * z)), 1.0)
    even = share([0.5] * 20, per_prompt=4)  # no spread at all, yet only 80 trials
    assert even.low == pytest.approx(wilson(0.5, 80, z)[0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        share([0.5, 1.5])


@pytest.mark.parametrize(
    ("kl", "baseline", "of_reference", "expected"),
    [
        ((2.0, 1.0), 1.0, True, (1.5, "")),
        ((2.0, 1.0), None, False, (None, "no baseline is given")),
        ((2.0, 1.0), 1.0, False, (None, "the baseline is not an evaluation of the reference")),
        ((2.0, -0.1), 1.0, True, (None, "KL is not above 0 beyond its noise")),
        ((2.0, None), 1.0, True, (None, "KL is not above 0 beyond its noise")),
    ],
)
def test_reward_for_a_nat(
    kl: tuple[float, float | None],
    baseline: float | None,
    of_reference: bool,
    expected: tuple[float | None, str],
) -> None:
    def of(mean: float, low: float | None) -> Estimate:
        return Estimate(mean, 0.1, low, 9.0, 5)

    found, reason = reward_per_kl(
        of(4.0, 3.0),
        None if baseline is None else of(baseline, 0.0),
        of(*kl),
        of_reference=of_reference,
    )
    assert found == expected[0]
    assert reason.startswith(expected[1])
