"""Times and counts calls, whatever way they end: the same for every service."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from prometheus_client import Counter, Gauge

from guerdon.serving.access import audit
from guerdon.serving.access.identity import Caller, current_caller
from guerdon.serving.errors import Overloaded
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.status import status_code
from guerdon.serving.waiting import left_late

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


C = TypeVar("C", bound=Call)


class CallTracker(ABC, Generic[C]):
    """Follows calls to their end, and holds callers to the calls that each may have at a time.

    Args:
        in_flight: counts calls by method while they are served.
    """

    def __init__(self, lifecycle: Lifecycle, in_flight: Gauge) -> None:
        self.lifecycle = lifecycle
        self._in_flight = in_flight
        self._held: dict[str, int] = {}
        """Calls being served, by the caller's key; only of callers that have a limit, and calls."""

    @abstractmethod
    def new_call(self, method: str, deadline: float | None) -> C:
        """A call that arrives now."""

    @abstractmethod
    def count(self, call: C, code: str, seconds: float) -> None:
        """A call has ended with a status code, so many seconds after its arrival."""

    @contextmanager
    def serve(self, method: str, deadline: float | None) -> Iterator[C]:
        """Follow a call, and hold the server open while it is served.

        Raises:
            Overloaded: its caller has as many calls as it may.
            Unavailable: the server is starting or draining.
        """
        with self.track(method, deadline) as call, self.lifecycle.admit():
            yield call

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[C]:
        """Follow a call to its end.

        Raises:
            Overloaded: its caller has as many calls as it may.
        """
        call = self.new_call(method, deadline)
        gauge = self._in_flight.labels(method)
        gauge.inc()
        code = "OK"
        try:
            with self._hold(call.caller):
                yield call
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
            loop.call_soon(self.count, call, code, seconds)
            loop.call_soon(audit.called, method, call.caller, code, seconds)

    @contextmanager
    def _hold(self, caller: Caller) -> Iterator[None]:
        if caller.max_calls is None:
            yield
            return
        calls = self._held.get(caller.key, 0)
        if calls >= caller.max_calls:
            raise Overloaded(
                f"{calls} calls of {caller.name!r} are being served, which is its max_calls",
                retry_after=LIMIT_RETRY_SECONDS,
            )
        self._held[caller.key] = calls + 1
        try:
            yield
        finally:
            self._held[caller.key] -= 1
            if not self._held[caller.key]:
                del self._held[caller.key]


class CallMetrics(Protocol):
    """The metrics of a service's calls."""

    in_flight: Gauge
    """Calls being served, by method."""
    requests: Counter
    """Calls that have ended, by method and by the code that they ended with."""
    caller_requests: Counter
    """Calls that have ended, by the caller's name and by code."""


class CountedCalls(CallTracker[Call]):
    """Counts calls by method, by caller, and by the code that they end with."""

    def __init__(self, metrics: CallMetrics, lifecycle: Lifecycle) -> None:
        super().__init__(lifecycle, metrics.in_flight)
        self._metrics = metrics

    def new_call(self, method: str, deadline: float | None) -> Call:
        """A call that arrives now."""
        return Call(method, deadline)

    def count(self, call: Call, code: str, _seconds: float) -> None:
        """Count it by method and by caller."""
        self._metrics.requests.labels(call.method, code).inc()
        self._metrics.caller_requests.labels(call.caller.name, code).inc()
