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
    MEAN_TOKENS,
    PREEMPTIBLE_CPU,
    TOTAL,
    EngineTimes,
    Simulation,
    online,
    overloaded,
)

from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.types import PriorityClass


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


@pytest.mark.parametrize(
    ("times", "ratio", "batch_part"),
    [(CPU, 2, 0.8), (GPU, 2, 0.5), (PREEMPTIBLE_CPU, 1.2, 0.85)],
)
def test_online_calls_wait_for_little_beside_a_job_that_saturates_the_engine(
    times: EngineTimes, ratio: float, batch_part: float
) -> None:
    limits = BatchLimits()
    alone, beside = (online(times, limits, batch_load=load) for load in (0, 3))
    assert beside.quantile(0.99) <= ratio * alone.quantile(0.99)
    assert beside.batch_part > batch_part  # what the short batches leave of the whole


@pytest.mark.parametrize("times", [CPU, GPU, PREEMPTIBLE_CPU])
def test_bulk_work_gets_its_share_however_much_online_work_comes(times: EngineTimes) -> None:
    limits = BatchLimits()
    simulation, capacity = Simulation(times, limits, seed=0), times.capacity(limits)
    seconds = TOTAL / capacity
    for priority in PriorityClass:
        simulation.offer(priority, 3 * capacity / MEAN_TOKENS, seconds, 60.0)
    tallies = simulation.run(until=seconds)
    done = [tallies[priority].good for priority in (PriorityClass.BATCH, PriorityClass.ONLINE)]
    assert done[0] / sum(done) == pytest.approx(limits.batch_share, abs=0.03)
    assert sum(done) > 0.8 * TOTAL


def test_without_a_bound_on_time_they_wait_for_whole_batches() -> None:
    limits = BatchLimits(max_batch_seconds=math.inf, shared_batch_seconds=math.inf)
    waited = online(CPU, limits, batch_load=3).quantile(0.5)
    assert waited > 1.0  # so the bound above is not held by luck
