"""Seconds of work, by a clock that stands still unless told."""

from __future__ import annotations

import pytest

from guerdon.trainer.common.services.utilisation import Meter, RolloutStats


def test_a_meter_counts_time_once_however_many_work() -> None:
    time = 0.0
    meter = Meter(lambda: time)
    time = 5.0
    with meter.running():
        time = 7.0
        with meter.running():
            time = 8.0
        assert meter.seconds == 3.0
        time = 10.0
    time = 20.0
    assert meter.seconds == 5.0


def test_stats_of_an_interval() -> None:
    first = RolloutStats(seconds=2.0, sampling_seconds=1.0, tokens=10, groups=1)
    last = RolloutStats(
        seconds=12.0,
        sampling_seconds=9.0,
        scoring_seconds=2.5,
        waiting_seconds=1.0,
        tokens=60,
        groups=4,
    )
    between = last - first
    assert (between.groups, between.tokens, between.seconds) == (3, 50, 10.0)
    assert between.sampling_idle == pytest.approx(0.2)
    assert between.scoring_idle == 0.75
    assert between.learning_idle == pytest.approx(0.1)
    assert RolloutStats().sampling_idle == 0.0
