"""Wires the sampler's calls to its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from guerdon.sampler.metrics import SamplerMetrics
from guerdon.serving.calls import Call, CallerLimits, tracked


class CallMetrics:
    """Counts calls by method and by the code that they end with."""

    def __init__(self, metrics: SamplerMetrics) -> None:
        self._metrics = metrics
        self._limits = CallerLimits()

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[Call]:
        """Follow a call to its end."""
        call = Call(method, deadline)
        with tracked(call, self._metrics.in_flight, self._limits, partial(self._finish, call)):
            yield call

    def _finish(self, call: Call, code: str, _seconds: float) -> None:
        self._metrics.requests.labels(call.method, code).inc()
        self._metrics.caller_requests.labels(call.caller.name, code).inc()
