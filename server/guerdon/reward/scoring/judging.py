"""Scores items with a judge: no engine and no queue, only waiting for its endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from guerdon.reward.counting import ScoringCall
from guerdon.reward.judge.budget import Asker
from guerdon.reward.judge.judge import Judge
from guerdon.reward.judge.question import JudgeQuestion
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.types import ModelInfo, ResponseScore
from guerdon.serving.errors import DeadlinePassed, Unavailable


class JudgeMetrics:
    """Implements `JudgeObserver`."""

    def __init__(self, metrics: RewardMetrics) -> None:
        self._metrics = metrics

    def asked(self, info: ModelInfo, outcome: str, seconds: float, tokens: int) -> None:
        """A request to an endpoint ended."""
        model = (info.name, info.revision_label)
        self._metrics.judge_requests.labels(*model, outcome).inc()
        self._metrics.judge_seconds.labels(*model).observe(seconds)
        self._metrics.judge_tokens.labels(*model).inc(tokens)

    def cached(self, info: ModelInfo) -> None:
        """A verdict was known already."""
        self._metrics.judge_cached.labels(info.name, info.revision_label).inc()


class Judging:
    """Waits for judges, until calls' deadlines or the server's end."""

    def __init__(self, metrics: RewardMetrics) -> None:
        self._metrics = metrics
        self._observer = JudgeMetrics(metrics)
        self._limits: set[asyncio.Timeout] = set()
        self._stopped = False

    async def judge(
        self, call: ScoringCall, judge: Judge, asked: Sequence[Sequence[JudgeQuestion]]
    ) -> list[list[ResponseScore]]:
        """The scores of the items that the questions are about.

        Raises:
            ServiceError: whatever stops it.
        """
        async with self._limited(call.deadline):
            scores = await judge.judge(asked, Asker(call.caller, call.priority), self._observer)
        model = (judge.info.name, judge.info.revision_label)
        self._metrics.sequences.labels(*model, call.priority.value).inc(sum(map(len, scores)))
        for item in scores:
            for score in item:
                self._metrics.scores.labels(*model).observe(score.score)
        return scores

    def stop(self) -> None:
        """Fail what is waited for, and what comes from now on."""
        self._stopped = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _limited(self, deadline: float | None) -> AsyncIterator[None]:
        """Until a deadline on the loop's clock, which is `time.monotonic`, or the server's end."""
        if self._stopped:
            raise Unavailable("the server is shutting down")
        try:
            async with asyncio.timeout_at(deadline) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if self._stopped:
                reason = "the server stopped before the request was done"
                raise Unavailable(reason) from error
            raise DeadlinePassed("the deadline passed before the judge had answered") from error
