"""Runs are compared at equal KL, with the noise of their gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guerdon.trainer.common.measuring.statistics import Estimate
from guerdon.trainer.compare.comparison import Result, RunGroup, gain_at
from guerdon.trainer.compare.runs import Point, Run, RunMeasures
from guerdon.trainer.compare.sentences import headlines

N = 10_000
"""Prompts: so many that Student's interval is the normal one."""


def mean_of(value: float, se: float = 0.0) -> Estimate:
    return Estimate(value, se, value - 1.96 * se, value + 1.96 * se, N)


def run(
    name: str, gain: float, kl: float, curve: tuple[tuple[float, float], ...] = (), se: float = 0.1
) -> Result:
    """A run that began at a reward of −1; `curve` has (KL, reward)."""
    before = RunMeasures({"reward": mean_of(-1.0)})
    after = RunMeasures({"reward": mean_of(gain - 1.0), "kl": mean_of(kl)})
    points = tuple(Point(i, reward, at) for i, (at, reward) in enumerate(curve))
    made = Run(Path(name), name, "ppo", "base", after=after, before=before)
    return Result(made, before, {"reward": mean_of(gain, se)}, gain / kl, curve=points)


def test_a_gain_at_a_smaller_kl_lies_on_the_runs_own_curve() -> None:
    far = run("far", 3.0, 9.0, curve=((1.0, 0.5), (4.0, 1.0)))
    assert gain_at(far, 9.0).mean == pytest.approx(3.0)
    assert gain_at(far, 4.0).mean == pytest.approx(2.0)
    assert gain_at(far, 1.0).mean == pytest.approx(1.5)
    assert gain_at(far, 2.25).mean == pytest.approx(1.75)  # half of the way in √KL
    assert gain_at(far, 0.25).mean == pytest.approx(0.75)
    assert gain_at(run("plain", 3.0, 9.0), 1.0).mean == pytest.approx(1.0)  # a line in √KL


def test_the_error_is_that_of_the_gain_and_of_kl() -> None:
    far = run("far", 3.0, 9.0)
    assert far.run.after
    assert gain_at(far, 9.0).se == pytest.approx(0.1)
    after = RunMeasures({**far.run.after.estimates, "kl": mean_of(9.0, 0.9)})
    uncertain = replace(far, run=replace(far.run, after=after))
    assert gain_at(uncertain, 9.0).se == pytest.approx((0.1**2 + (3.0 / 2 * 0.1) ** 2) ** 0.5)


def test_who_moved_least_has_not_won_by_that() -> None:
    """By the nat the short run leads (0.50 to 0.33); at its own KL the long one had more."""
    short, far = run("short", 0.5, 1.0), run("far", 3.0, 9.0, curve=((1.0, 0.5),))
    (said,) = [
        text for text in headlines(RunGroup(None, (short, far))) if "nats of KL, which" in text
    ]
    assert said.startswith("At 1.00 nats of KL, which all of them reached, far had gained the most")
    assert "+1.50 (+1.30 to +1.70); the next is short, +0.50" in said
    assert said.endswith("which is less by 1.00 (0.72 to 1.28).")


def test_a_difference_within_the_noise_is_no_victory() -> None:
    first, second = run("a", 1.0, 1.0, se=0.2), run("b", 1.1, 1.0, se=0.2)
    (said,) = [text for text in headlines(RunGroup(None, (first, second))) if "which all" in text]
    assert said.endswith("the two can't be told apart: +0.10 (−0.45 to +0.65).")
