"""Overload on simulated time: what is admitted is done in time, and the engine stays busy.

The bounds lie below what `python -m tests.scheduling.simulation` prints, which
docs/scheduling.md explains.
"""

from __future__ import annotations

import math

import pytest
from tests.scheduling.simulation import (
    CPU,
    GPU,
    TOTAL,
    EngineTimes,
    online,
    overloaded,
)

from guerdon.reward.scheduling.limits import BatchLimits


@pytest.mark.parametrize("times", [CPU, GPU])
@pytest.mark.parametrize(
    ("load", "service_times", "good", "late"),
    [
        (0.5, 5, 0.38, 0.03), (0.5, 20, 0.47, 0.01), (1, 5, 0.55, 0.06), (1, 20, 0.85, 0.02),
        (2, 5, 0.5, 0.25), (2, 20, 0.85, 0.1), (5, 5, 0.45, 0.4), (5, 20, 0.85, 0.15),
    ],
)  # fmt: skip
def test_goodput_holds_at_overload(
    times: EngineTimes, load: float, service_times: float, good: float, late: float
) -> None:
    tally = overloaded(times, load, service_times)
    assert tally.good >= good * TOTAL
    assert tally.late + tally.expired <= late * TOTAL


@pytest.mark.parametrize(("times", "batch_part"), [(CPU, 0.8), (GPU, 0.5)])
def test_online_calls_wait_for_little_beside_a_job_that_saturates_the_engine(
    times: EngineTimes, batch_part: float
) -> None:
    limits = BatchLimits()
    alone, beside = (online(times, limits, batch_load=load) for load in (0, 3))
    assert beside.quantile(0.99) <= 2 * alone.quantile(0.99)
    assert beside.batch_part > batch_part  # what the short batches leave of the whole


def test_without_a_bound_on_time_they_wait_for_whole_batches() -> None:
    limits = BatchLimits(max_batch_seconds=math.inf, shared_batch_seconds=math.inf)
    waited = online(CPU, limits, batch_load=3).quantile(0.5)
    assert waited > 1.0  # so the bound above is not held by luck
