"""Wires the sampler's calls to its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from guerdon.sampler.metrics import SamplerMetrics
from guerdon.serving.calls import Call, tracked


class Calls:
    """Counts calls by method and by the code that they end with."""

    def __init__(self, metrics: SamplerMetrics) -> None:
        self._metrics = metrics

    @contextmanager
    def track(self, method: str, deadline: float | None) -> Iterator[Call]:
        """Follow a call to its end."""
        call = Call(method, deadline)
        with tracked(call, self._metrics.in_flight, partial(self._finish, method)):
            yield call

    def _finish(self, method: str, code: str, _seconds: float) -> None:
        self._metrics.requests.labels(method, code).inc()
