"""Groups that are sampled and scored by the weights that were published last.

A sampler that was restarted has lost its weights: it is given them again, and what was asked of
it meanwhile is asked anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from guerdon.together import cancel
from guerdon.trainer.common.errors import ServiceGone
from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import say
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler, StaleSampler, sampling_seed
from guerdon.trainer.common.services.scored_store import ScoredGroups
from guerdon.trainer.common.services.settings import DrawSettings
from guerdon.trainer.common.services.types import Group, Task
from guerdon.trainer.common.services.utilisation import Meter, RolloutStats

logger = logging.getLogger(__name__)


class Scores(Protocol):
    """What fills in the rewards of a group: a `RewardSource`, or several."""

    async def score(self, group: Group) -> Group:
        """Fill in the rewards of a group, and return it."""
        ...


Republish = Callable[[], Awaitable[int]]
"""Publishes the learner's weights to a sampler that lost them; returns their version."""


class Drawing:
    """Samples tasks, and scores what was drawn.

    Args:
        settings: of the run.
        sampler: draws completions; closed by `close`.
        rewards: scores them; closed by `close`.
        republish: called only where the weights stand still, when the sampler has lost them.
        seeded: seed every completion, so that a run can be repeated.
    """

    def __init__(
        self,
        settings: DrawSettings,
        sampler: GroupSampler,
        rewards: RewardSource,
        republish: Republish,
        *,
        seeded: bool,
    ) -> None:
        self._seed = settings.seed if seeded else None
        self._patience = settings.patience
        self._sampler = sampler
        self._rewards = rewards
        self._republish = republish
        self._sampler_version = 0
        self._given = 0
        """How often the sampler was given weights: a version may be given twice."""
        self._survived = 0
        """The sampler's outages before it was last given weights."""
        self._fresh = asyncio.Event()
        self._stale = asyncio.Event()
        self._began = time.monotonic()
        self._sampling, self._scoring = Meter(), Meter()
        self._restarts = 0

    async def start(self, version: int) -> None:
        """Find the reward models, and begin to sample.

        Args:
            version: what the sampler serves: the weights just published.

        Raises:
            TrainingError: a reward model can't be had.
        """
        await self._rewards.start()
        self._began = time.monotonic()
        self.published(version)

    def published(self, version: int) -> None:
        """The sampler serves this version now; what waited for it goes on."""
        self._sampler_version = version
        self._given += 1
        self._survived = self._sampler.patience.faults_survived
        self._stale.clear()
        self._fresh.set()

    async def sample(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        rewards: Scores | None = None,
        temperature: float | None = None,
        stream: int = 1,
        in_flight: int = 16,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """Samples beside training, by the weights published last: evaluations, RFT.

        Args:
            tasks: not of the run's `PromptOrder`.
            n: completions of each.
            rewards: scores them, where given.
            temperature: the run's when not given.
            stream: of seeds in deterministic mode: training has 0, every other use one of its own.
            in_flight: most tasks that are being sampled.
            on_group: told of each group as it comes, in any order.

        Returns:
            A group for each task, in their order.

        Raises:
            TrainingError: a service stayed away or refused.
        """
        room = asyncio.Semaphore(in_flight)

        async def one(task: Task) -> Group:
            await room.acquire()
            group = await self._draw(task, n, stream, temperature)
            if rewards:
                await self._score(group, rewards)
            on_group(group)
            room.release()  # not after an error, which ends all: nothing more is begun
            return group

        work = [asyncio.create_task(one(task)) for task in tasks]
        try:
            await self._finish(work)
            return [task.result() for task in work]
        finally:
            await cancel(work)

    def stats(self) -> RolloutStats:
        """What happened so far."""
        return RolloutStats(
            seconds=time.monotonic() - self._began,
            sampling_seconds=self._sampling.seconds,
            scoring_seconds=self._scoring.seconds,
            stale_sampler=self._restarts,
            faults_survived=self._sampler.patience.faults_survived + self._rewards.faults_survived,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._sampler.close()
        await self._rewards.close()

    async def _draw(self, task: Task, n: int, stream: int, temperature: float | None) -> Group:
        """The samples of one task, unscored; waits where the sampler has lost its weights."""
        seed = None if self._seed is None else sampling_seed(self._seed, stream, task.uid)
        begin = time.monotonic()
        while True:
            await self._fresh.wait()
            version, given = self._sampler_version, self._given
            self._starts(task, version, stream)
            try:
                with self._sampling.running():
                    return await self._sampler.sample(
                        task, n, min_version=version, temperature=temperature, seed=seed
                    )
            except StaleSampler as error:
                if time.monotonic() - begin > self._patience:
                    raise ServiceGone(
                        f"{self._sampler.patience.service} at {self._sampler.patience.address} "
                        f"keeps losing its weights: {error}"
                    ) from error
                if given == self._given:
                    self._lost()

    def _starts(self, task: Task, version: int, stream: int) -> None:
        """Told of a task that is about to be drawn by the weights of a version."""

    async def _score(self, group: Group, rewards: Scores) -> Group:
        with self._scoring.running():
            return await rewards.score(group)

    def _lost(self) -> None:
        """The sampler has older weights than were published: it was restarted."""
        if self._fresh.is_set():
            logger.warning("the sampler lost its weights")
            self._restarts += 1
            if self._sampler.patience.faults_survived == self._survived:
                self._sampler.patience.away()  # it came back before anybody missed it
            self._fresh.clear()
            self._stale.set()

    async def _heal(self) -> None:
        if not self._fresh.is_set():
            self.published(await self._republish())

    async def _finish(self, work: Sequence[asyncio.Task[Any]]) -> None:
        """Wait until all are done or one has failed, and give the sampler back its weights."""
        pending = set(work)
        while pending:
            await self._heal()
            stale = asyncio.create_task(self._stale.wait())
            try:
                done, pending = await asyncio.wait(
                    {*pending, stale}, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                stale.cancel()
            pending.discard(stale)
            for task in done - {stale}:
                task.result()


LINES = 10
"""Lines over the whole sampling, where there is no terminal."""


async def draw_missing(
    drawing: Drawing,
    scored: ScoredGroups,
    rewards: Scores,
    console: Console,
    *,
    stream: int = 1,
    in_flight: int = 16,
    check: Callable[[Group], None] = lambda group: None,
) -> None:
    """Sample and score the groups that a store lacks: a bar on a terminal, some lines elsewhere.

    Args:
        drawing: that samples, by the weights published last.
        scored: gets each group as it comes.
        rewards: scores them.
        console: where; a quiet one shows nothing.
        stream: of seeds.
        in_flight: most prompts that are being sampled.
        check: refuses a group before it is stored.

    Raises:
        TrainingError: a service stayed away or refused.
    """
    total = len(scored) + len(scored.missing)
    means: list[float] = []
    scored.begin()
    with Bar(console, "sampling", total, len(scored)) as bar:

        def on_group(group: Group) -> None:
            check(group)
            scored.add(group)
            means.append(float(group.rewards_G.mean()))
            mean, done = f"mean reward {np.mean(means):+.3f}", len(scored)
            bar.move(done, mean)
            if bar.disable and (done % math.ceil(total / LINES) == 0 or done == total):
                say(console, f"sampled {done}/{total} prompts: {mean}")

        await drawing.sample(
            scored.missing,
            scored.samples_per_prompt,
            rewards=rewards,
            stream=stream,
            in_flight=in_flight,
            on_group=on_group,
        )
