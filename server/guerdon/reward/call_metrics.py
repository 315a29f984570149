"""Counts and times calls, whatever way they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.models.registry import Registry
from guerdon.reward.types import ModelInfo, PriorityClass
from guerdon.serving.calls import Call, CallTracker
from guerdon.serving.process.lifecycle import Lifecycle

UNKNOWN = "unknown"
"""Label for models that are not loaded, so that callers cannot make up labels."""


class ScoringCall(Call):
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


class ScoringCalls(CallTracker[ScoringCall]):
    """Counts calls under the code that they end with, and times those that succeed."""

    def __init__(self, metrics: RewardMetrics, registry: Registry, lifecycle: Lifecycle) -> None:
        super().__init__(lifecycle, metrics.in_flight)
        self._metrics = metrics
        self._registry = registry

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[ScoringCall]:
        """Follow a call to its end, also by its caller."""
        gauge = self._metrics.caller_in_flight
        with (
            super().track(method, deadline) as call,
            gauge.labels(call.caller.name).track_inprogress(),
        ):
            yield call

    def new_call(self, method: str, deadline: float | None) -> ScoringCall:
        """A call that arrives now."""
        return ScoringCall(method, deadline)

    def count(self, call: ScoringCall, code: str, seconds: float) -> None:
        """Count it by model, class and caller."""
        name = call.info.name if call.info else self._registry.canonical(call.spec) or UNKNOWN
        priority = call.priority.value
        self._metrics.requests.labels(call.method, name, priority, code).inc()
        self._metrics.caller_requests.labels(call.caller.name, priority, code).inc()
        if call.info is not None and code == "OK":
            revision = call.info.revision_label
            self._metrics.request_seconds.labels(name, revision, priority).observe(seconds)
