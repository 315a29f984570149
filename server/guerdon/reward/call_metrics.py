"""Counts and times calls, whatever way they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.models.registry import Registry
from guerdon.reward.types import ModelInfo, PriorityClass
from guerdon.serving import calls

UNKNOWN = "unknown"
"""Label for models that are not loaded, so that callers cannot make up labels."""


class ScoringCall(calls.Call):
    """A call of the reward service, with what it asks for."""

    def __init__(self, method: str, deadline: float | None) -> None:
        super().__init__(method, deadline)
        self.spec = ""
        self.priority = PriorityClass.ONLINE
        self.info: ModelInfo | None = None
        """The revision that it was resolved to."""

    def asks(self, spec: str, priority: PriorityClass) -> None:
        """Note what is asked for, for the labels."""
        self.spec = spec
        self.priority = priority


class CallMetrics:
    """Wires calls to the metrics."""

    def __init__(self, metrics: RewardMetrics, registry: Registry) -> None:
        self._metrics = metrics
        self._registry = registry
        self._limits = calls.CallerLimits()

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[ScoringCall]:
        """Count a call under the code that it ends with, and time it if it succeeds."""
        call = ScoringCall(method, deadline)
        gauge, caller = self._metrics.in_flight, self._metrics.caller_in_flight
        with (
            calls.tracked(call, gauge, self._limits, partial(self._finish, call)),
            caller.labels(call.caller.name).track_inprogress(),
        ):
            yield call

    def _finish(self, call: ScoringCall, code: str, seconds: float) -> None:
        name = call.info.name if call.info else self._registry.canonical(call.spec) or UNKNOWN
        priority = call.priority.value
        self._metrics.requests.labels(call.method, name, priority, code).inc()
        self._metrics.caller_requests.labels(call.caller.name, priority, code).inc()
        if call.info is not None and code == "OK":
            revision = call.info.revision_label
            self._metrics.request_seconds.labels(name, revision, priority).observe(seconds)
