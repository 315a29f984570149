"""Counts the gateway's calls."""

from __future__ import annotations

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.serving.calls import Call, CallTracker
from guerdon.serving.process.lifecycle import Lifecycle


class GatewayCalls(CallTracker[Call]):
    """Counts calls by method and by the code that they end with."""

    def __init__(self, metrics: GatewayMetrics, lifecycle: Lifecycle) -> None:
        super().__init__(lifecycle, metrics.in_flight)
        self._metrics = metrics

    def new_call(self, method: str, deadline: float | None) -> Call:
        """A call that arrives now."""
        return Call(method, deadline)

    def count(self, call: Call, code: str, _seconds: float) -> None:
        """Count it by method and by caller."""
        self._metrics.requests.labels(call.method, code).inc()
        self._metrics.caller_requests.labels(call.caller.name, code).inc()
