"""Counts and times what happens: calls, whatever way they end, batches, and models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from guerdon.reward.metrics import JUDGE_OUTCOMES, RewardMetrics
from guerdon.reward.models.registry import Registry
from guerdon.reward.models.revision import Revision
from guerdon.reward.scheduling.events import DropReason, DropStage, Failure
from guerdon.reward.types import BatchStats, ComputeMode, ModelInfo, ModelKind, PriorityClass
from guerdon.serving.calls import Call, CallTracker
from guerdon.serving.lifecycle import Lifecycle


class MetricsObserver:
    """Implements `DispatchObserver` and `RegistryObserver`; all calls are on the event loop.

    Args:
        on_engine_changed: called with whether any engine can compute.
        on_engines_ended: called when none will be computed any more, for whatever reason.
    """

    def __init__(
        self,
        metrics: RewardMetrics,
        *,
        on_engine_changed: Callable[[bool], None],
        on_engines_ended: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._on_engine_changed = on_engine_changed
        self._on_engines_ended = on_engines_ended
        self._engines: dict[int, bool] = {}
        """Whether each engine can compute."""
        self.queue_changed(dict.fromkeys(PriorityClass, (0, 0)))

    def queue_changed(self, queue: Mapping[PriorityClass, tuple[int, int]]) -> None:
        """What each class holds now."""
        for priority, (tokens, items) in queue.items():
            self._metrics.queue_tokens.labels(priority.value).set(tokens)
            self._metrics.queue_items.labels(priority.value).set(items)

    def shed(self, model_name: str, priority: PriorityClass) -> None:
        """A request was refused for overload."""
        self._metrics.shed.labels(model_name, priority.value).inc()

    def dropped(
        self, info: ModelInfo, priority: PriorityClass, reason: DropReason, stage: DropStage
    ) -> None:
        """An accepted item ended with nobody waiting for it."""
        self._metrics.dropped.labels(info.name, priority.value, reason.value, stage.value).inc()

    def batch_done(self, info: ModelInfo, stats: BatchStats, seconds: float, engine: int) -> None:
        """A model computed a batch on an engine."""
        model = (info.name, info.revision_label)
        metrics = self._metrics
        metrics.batch_tokens.labels(*model).observe(stats.computed_tokens)
        metrics.batch_sequences.labels(*model).observe(stats.sequences)
        metrics.computed_tokens.labels(*model).inc(stats.computed_tokens)
        metrics.padding_tokens.labels(*model).inc(stats.padding_tokens)
        metrics.reused_tokens.labels(*model).inc(stats.reused_tokens)
        metrics.cached_tokens.labels(*model).inc(stats.cached_tokens)
        metrics.engine_busy_seconds.labels(engine).inc(seconds)

    def preempted(self, info: ModelInfo) -> None:
        """A batch was computed, or failed, between the layers of another one."""
        self._metrics.preempting_batches.labels(info.name, info.revision_label).inc()

    def batch_failed(self, info: ModelInfo, reason: Failure, seconds: float, engine: int) -> None:
        """A batch, or something in it, has no scores."""
        labels = (info.name, info.revision_label, reason.value)
        self._metrics.batch_failures.labels(*labels).inc()
        self._metrics.engine_busy_seconds.labels(engine).inc(seconds)

    def nonfinite(self, info: ModelInfo, count: int) -> None:
        """Scores that are not finite numbers."""
        labels = (info.name, info.revision_label)
        self._metrics.nonfinite_scores.labels(*labels).inc(count)

    def engine_changed(self, engine: int, up: bool) -> None:
        """An engine can compute batches, or can't."""
        restarts = self._metrics.engine_restarts.labels(engine)
        if up and engine in self._engines:
            restarts.inc()
        self._engines[engine] = up
        self._metrics.engine_up.labels(engine).set(1 if up else 0)
        self._metrics.engine_busy_seconds.labels(engine)
        self._on_engine_changed(any(self._engines.values()))

    def engines_ended(self) -> None:
        """No batch will be computed any more."""
        self._on_engines_ended()

    def model_loaded(self, name: str, outcome: str, seconds: float) -> None:
        """An attempt to load ended."""
        self._metrics.model_loads.labels(name, outcome).inc()
        if outcome == "loaded":
            self._metrics.model_load_seconds.labels(name).observe(seconds)

    def models_changed(self, revisions: list[Revision]) -> None:
        """Describe exactly the revisions that are loaded now."""
        for name in {each.info.name for each in revisions}:
            self._begin_name(name)
        for each in revisions:
            self._begin_revision(each.info.name, each.info.revision_label)
            if each.info.kind is ModelKind.JUDGE:
                self._begin_judge(each.info.name, each.info.revision_label)
        self._metrics.model_info.clear()
        self._metrics.model_packed.clear()
        for each in revisions:
            info, revision = each.info, each.info.revision_label
            self._metrics.model_info.labels(
                info.name,
                revision,
                info.kind.value,
                info.compute_mode.value,
                info.dtype,
                info.device,
                str(each.current).lower(),
            ).set(1)
            if info.compute_mode is not ComputeMode.REMOTE:
                packed = info.compute_mode is ComputeMode.PACKED
                self._metrics.model_packed.labels(info.name, revision).set(1 if packed else 0)

    def model_closed(self, info: ModelInfo, *, last: bool) -> None:
        """Forget the series of a revision that nothing uses any more, so that they stay few."""
        metrics = self._metrics
        labels = {"model": info.name, "revision": info.revision_label}
        for metric in (
            *metrics.of_revision(),
            *metrics.of_judge(),
            metrics.batch_failures,
            metrics.sequences,
            metrics.queue_seconds,
            metrics.tokenize_seconds,
            metrics.compute_seconds,
            metrics.request_seconds,
        ):
            metric.remove_by_labels(labels)
        if last:
            for metric in (metrics.requests, metrics.shed, metrics.dropped):
                metric.remove_by_labels({"model": info.name})

    def _begin_name(self, name: str) -> None:
        """Series at 0: a counter that is born with its first event has no increase."""
        metrics = self._metrics
        for each in PriorityClass:
            metrics.shed.labels(name, each.value)
            for reason, stage in itertools.product(DropReason, DropStage):
                metrics.dropped.labels(name, each.value, reason.value, stage.value)

    def _begin_judge(self, name: str, revision: str) -> None:
        requests, *others = self._metrics.of_judge()
        for outcome in JUDGE_OUTCOMES:
            requests.labels(name, revision, outcome)
        for metric in others:
            metric.labels(name, revision)

    def _begin_revision(self, name: str, revision: str) -> None:
        metrics = self._metrics
        for metric in metrics.of_revision():
            metric.labels(name, revision)
        for failure in Failure:
            metrics.batch_failures.labels(name, revision, failure.value)
        for each in PriorityClass:
            metrics.sequences.labels(name, revision, each.value)


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
