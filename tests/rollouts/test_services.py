"""A service that is away is waited for, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from guerdon.client import (
    DeadlineExceeded,
    GuerdonError,
    Internal,
    InvalidArgument,
    Overloaded,
    Unavailable,
)
from guerdon.client.testing import FakeClock
from guerdon.trainer.common.errors import ServiceGone, SettingsError
from guerdon.trainer.common.services.patience import (
    Patience,
    ServiceRefused,
    parse_address,
)


def overloaded(seconds: int) -> Overloaded:
    detail = error_details_pb2.RetryInfo()
    detail.retry_delay.seconds = seconds
    return Overloaded("busy", details=[detail])


def failing(*errors: GuerdonError) -> Callable[[], Any]:
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return call


def patience(clock: FakeClock, seconds: float = 60.0) -> Patience:
    return Patience("the sampler", "host:1", seconds, clock=clock.clock)


async def test_what_is_away_is_asked_again_and_counted_once() -> None:
    clock = FakeClock()
    asked = patience(clock)
    away = [Unavailable("gone"), DeadlineExceeded("late")]
    aborted = GuerdonError("update", code=grpc.StatusCode.ABORTED)
    assert await asked.ask(failing(*away, aborted)) == "answer"
    assert asked.faults_survived == 1
    assert clock.sleeps == sorted(clock.sleeps)
    assert await asked.ask(failing()) == "answer"
    assert await asked.ask(failing(Unavailable("again"))) == "answer"
    assert asked.faults_survived == 2


async def test_overload_is_no_fault_and_the_servers_time_is_waited() -> None:
    clock = FakeClock()
    asked = patience(clock)
    assert await asked.ask(failing(overloaded(7), overloaded(9))) == "answer"
    assert (asked.faults_survived, asked.overloads) == (0, 2)
    assert clock.sleeps[0] > 7
    assert clock.sleeps[1] > 9


async def test_patience_ends_in_one_sentence() -> None:
    clock = FakeClock()
    asked = patience(clock, seconds=30)
    with pytest.raises(ServiceGone) as caught:
        await asked.ask(failing(*[Unavailable("connection refused")] * 1000))
    assert str(caught.value) == (
        "the sampler at host:1 gave no answer for 30 seconds (--patience); "
        "the last error was UNAVAILABLE: connection refused"
    )
    assert 20 < clock.time <= 30


async def test_patience_begins_with_the_outage_not_with_the_call() -> None:
    clock = FakeClock()
    errors = [Unavailable("restarting"), Unavailable("restarting")]

    async def call() -> str:
        clock.time += 61  # a long generation, broken by a restart
        if errors:
            raise errors.pop()
        return "answer"

    assert await patience(clock, seconds=100).ask(call) == "answer"


async def test_a_call_whose_deadlines_pass_was_never_answered() -> None:
    clock = FakeClock()

    async def hangs() -> str:
        clock.time += 20
        raise DeadlineExceeded("late")

    with pytest.raises(ServiceGone):
        await patience(clock, seconds=30).ask(hangs)
    assert clock.time < 50


async def test_overload_is_waited_out_however_long(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    asked = patience(clock, seconds=30)
    assert await asked.ask(failing(*[overloaded(10)] * 20)) == "answer"
    assert clock.time > 200
    assert 2 < len([r for r in caplog.records if "is overloaded" in r.message]) < 10


@pytest.mark.parametrize(
    "error", [InvalidArgument("bad"), Internal("nan"), Overloaded("too large")]
)
async def test_an_answer_is_not_asked_for_again(error: GuerdonError) -> None:
    clock = FakeClock()
    with pytest.raises(type(error)):
        await patience(clock).ask(failing(error))
    with pytest.raises(ServiceRefused, match=f"the sampler at host:1 refuses: .*{error.message}"):
        await patience(clock).insist(failing(error))
    assert not clock.sleeps


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "http://host:1", "a/host:1"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(SettingsError, match=r"sampler: .* is not HOST:PORT"):
        parse_address(address, "sampler")
