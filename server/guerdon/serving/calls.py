"""Times and counts calls, whatever way they end: the same for every service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from guerdon.serving.callers import current_caller
from guerdon.serving.deadlines import left_late
from guerdon.serving.status import code_of


class Call:
    """One call, or one item of a stream, from its arrival to its reply."""

    def __init__(self, method: str, deadline: float | None) -> None:
        self.method = method
        self.deadline = deadline
        """On `time.monotonic`'s clock."""
        self.arrival = time.monotonic()
        self.caller = current_caller()

    def elapsed(self) -> float:
        """Seconds since its arrival."""
        return time.monotonic() - self.arrival

    @property
    def late(self) -> bool:
        """Whether its deadline has passed, or is as good as passed."""
        return left_late(self.deadline, time.monotonic())


@contextmanager
def tracked(call: Call, in_flight: Gauge, finish: Callable[[str, float], None]) -> Iterator[None]:
    """Follow a call to its end.

    Args:
        in_flight: counts calls by method while they are served.
        finish: gets the name of the status code and the seconds since the call's arrival.
    """
    gauge = in_flight.labels(call.method)
    gauge.inc()
    code = "OK"
    try:
        yield
    except asyncio.CancelledError:
        # grpc cancels the handler when the deadline passes as well as when the caller leaves.
        code = "DEADLINE_EXCEEDED" if call.late else "CANCELLED"
        raise
    except Exception as error:
        code = code_of(error).name
        raise
    finally:
        gauge.dec()
        # Once the reply is on its way: counting is not worth the caller's time.
        asyncio.get_running_loop().call_soon(finish, code, call.elapsed())
