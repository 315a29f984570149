"""Times and counts calls, whatever way they end: the same for every service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from guerdon.serving.access import audit
from guerdon.serving.access.identity import Caller, current_caller
from guerdon.serving.deadlines import left_late
from guerdon.serving.errors import Overloaded
from guerdon.serving.status import status_code

LIMIT_RETRY_SECONDS = 0.5
"""When to come back after a call too many: one of its own should have ended."""


class Call:
    """One call, or one item of a stream, from its arrival to its reply."""

    def __init__(self, method: str, deadline: float | None) -> None:
        self.method = method
        self.deadline = deadline
        """The time by which the caller wants its reply, on `time.monotonic`'s clock."""
        self.arrival = time.monotonic()
        self.caller = current_caller()

    def elapsed(self) -> float:
        """Seconds since its arrival."""
        return time.monotonic() - self.arrival

    @property
    def late(self) -> bool:
        """Whether its deadline has passed, or is as good as passed."""
        return left_late(self.deadline, time.monotonic())


class CallerLimits:
    """Holds callers to the number of calls that each may have served at a time."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}
        """Calls being served, by the caller's key; only of callers that have a limit, and calls."""

    @contextmanager
    def hold(self, caller: Caller) -> Iterator[None]:
        """Count a call of a caller while it is served.

        Raises:
            Overloaded: the caller has as many calls as it may.
        """
        if caller.max_calls is None:
            yield
            return
        calls = self._calls.get(caller.key, 0)
        if calls >= caller.max_calls:
            raise Overloaded(
                f"{calls} calls of {caller.name!r} are being served, which is its max_calls",
                retry_after=LIMIT_RETRY_SECONDS,
            )
        self._calls[caller.key] = calls + 1
        try:
            yield
        finally:
            self._calls[caller.key] -= 1
            if not self._calls[caller.key]:
                del self._calls[caller.key]


@contextmanager
def tracked(
    call: Call, in_flight: Gauge, limits: CallerLimits, finish: Callable[[str, float], None]
) -> Iterator[None]:
    """Follow a call to its end.

    Args:
        in_flight: counts calls by method while they are served.
        finish: gets the name of the status code and the seconds since the call's arrival.

    Raises:
        Overloaded: its caller has as many calls as it may.
    """
    gauge = in_flight.labels(call.method)
    gauge.inc()
    code = "OK"
    try:
        with limits.hold(call.caller):
            yield
    except asyncio.CancelledError:
        # grpc cancels the handler when the deadline passes as well as when the caller leaves.
        code = "DEADLINE_EXCEEDED" if call.late else "CANCELLED"
        raise
    except Exception as error:
        code = status_code(error).name
        raise
    finally:
        gauge.dec()
        # Once the reply is on its way: counting is not worth the caller's time.
        loop, seconds = asyncio.get_running_loop(), call.elapsed()
        loop.call_soon(finish, code, seconds)
        loop.call_soon(audit.called, call.method, call.caller, code, seconds)
