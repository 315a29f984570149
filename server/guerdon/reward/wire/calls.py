"""Counts and times calls, whatever way they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.registry import Registry
from guerdon.reward.types import ModelInfo, PriorityClass
from guerdon.serving.deadlines import left_late
from guerdon.serving.status import code_of

UNKNOWN = "unknown"
"""Label for models that are not loaded, so that callers cannot make up labels."""


def revision_label(revision: str) -> str:
    """The first characters of a revision, as metrics name it."""
    return revision[:12]


class Call:
    """One call, or one item of a stream, from its arrival to its reply."""

    def __init__(self, method: str, deadline: float | None) -> None:
        self.method = method
        self.deadline = deadline
        """On `time.monotonic`'s clock."""
        self.arrival = time.monotonic()
        self.spec = ""
        self.priority = PriorityClass.ONLINE
        self.info: ModelInfo | None = None
        """What it was resolved to."""

    def asks(self, spec: str, priority: PriorityClass) -> None:
        """Note what is asked for, for the labels."""
        self.spec = spec
        self.priority = priority

    def elapsed(self) -> float:
        """Seconds since its arrival."""
        return time.monotonic() - self.arrival

    @property
    def late(self) -> bool:
        """Whether its deadline has passed, or is as good as passed."""
        return left_late(self.deadline, time.monotonic())


class CallMetrics:
    """Wires calls to the metrics."""

    def __init__(self, metrics: RewardMetrics, registry: Registry) -> None:
        self._metrics = metrics
        self._registry = registry

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[Call]:
        """Count a call under the code that it ends with, and time it if it succeeds."""
        call = Call(method, deadline)
        in_flight = self._metrics.in_flight.labels(method)
        in_flight.inc()
        code = "OK"
        try:
            yield call
        except asyncio.CancelledError:
            # grpc cancels the handler when the deadline passes as well as when the caller leaves.
            code = "DEADLINE_EXCEEDED" if call.late else "CANCELLED"
            raise
        except Exception as error:
            code = code_of(error).name
            raise
        finally:
            in_flight.dec()
            # Once the reply is on its way: counting is not worth the caller's time.
            asyncio.get_running_loop().call_soon(self._finish, call, code, call.elapsed())

    def _finish(self, call: Call, code: str, seconds: float) -> None:
        name = call.info.name if call.info else self._registry.canonical(call.spec) or UNKNOWN
        priority = call.priority.value
        self._metrics.requests.labels(call.method, name, priority, code).inc()
        if call.info is not None and code == "OK":
            revision = revision_label(call.info.revision)
            self._metrics.request_seconds.labels(name, revision, priority).observe(seconds)
