"""Rollouts: groups are sampled and scored while the learner works, within the staleness bound.

    rollouts = Rollouts(settings, order, sampler, rewards, republish=…)
    await rollouts.start(version)                  # the sampler serves this version
    groups = await rollouts.next_batch(version)    # what the weights of this version train on
    …                                              # train, publish version + 1
    rollouts.published(version + 1)

All of it lives on one event loop; the learner's blocking work belongs in a thread, so that
sampling and scoring go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from guerdon.trainer.common.services.patience import ServiceGone
from guerdon.trainer.common.services.prompts import PromptOrder
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler, StaleSampler, sampling_seed
from guerdon.trainer.common.services.types import Group, Task
from guerdon.trainer.common.services.utilisation import Meter, RolloutStats
from guerdon.trainer.rl.rollout.buffer import Buffer
from guerdon.trainer.rl.settings import RunSettings

logger = logging.getLogger(__name__)


class Scores(Protocol):
    """What fills in the rewards of a group: a `RewardSource`, or several."""

    async def score(self, group: Group) -> Group:
        """The same group, scored."""
        ...


Republish = Callable[[], Awaitable[int]]
"""Publishes the learner's weights to a sampler that lost them; returns their version."""


class Rollouts:
    """Keeps the buffer filled, and hands out the groups of each step.

    A task is given out by `order`, sampled, scored, buffered and consumed; one whose samples
    can't be used goes back to `order`. An error that ends the run is raised by `next_batch`.

    Args:
        settings: of the run.
        order: the tasks.
        sampler: draws completions; closed by `close`.
        rewards: scores them; closed by `close`.
        republish: called only from within `next_batch` and `sample`, where the learner's weights
            stand still, when the sampler has lost its weights.
        fill: whether to sample the tasks of `order` at all; without, only `sample` does anything.
        last_version: of the weights that the last step trains: nothing is sampled beyond it.
        now: seconds of a steady clock.
    """

    def __init__(
        self,
        settings: RunSettings,
        order: PromptOrder,
        sampler: GroupSampler,
        rewards: RewardSource,
        *,
        republish: Republish,
        fill: bool = True,
        last_version: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._order = order
        self._sampler = sampler
        self._rewards = rewards
        self._republish = republish
        self._may_fill = fill
        self._last_version = last_version
        self._now = now
        self._buffer = Buffer(settings.max_staleness, ordered=settings.deterministic)
        self._sampler_version = 0
        self._given = 0
        """How often the sampler was given weights: a version may be given twice."""
        self._survived = 0
        """Its outages before the last time."""
        self._next_version = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._fresh = asyncio.Event()
        self._stale = asyncio.Event()
        self._closed = False
        self._began = now()
        self._sampling, self._scoring, self._waiting = Meter(now), Meter(now), Meter(now)
        self._counts = dict.fromkeys(
            ("groups", "completions", "tokens", "expired_groups", "stale_sampler"), 0
        )

    async def start(self, version: int) -> None:
        """Find the reward models, and begin to sample.

        Args:
            version: what the sampler serves: the learner's weights, just published.

        Raises:
            TrainingError: a reward model can't be had.
        """
        await self._rewards.start()
        self._began = self._now()
        self._next_version = version
        self.published(version)

    def published(self, version: int) -> None:
        """The sampler serves this version now; what waited for it goes on."""
        self._sampler_version = version
        self._given += 1
        self._survived = self._sampler.patience.faults_survived
        self._stale.clear()
        self._fresh.set()
        self._fill()

    async def next_batch(self, version: int) -> list[Group]:
        """A step's groups, every token of them at most η versions behind.

        Cancelling it loses nothing.

        Args:
            version: of the weights that will be trained on them.

        Raises:
            TrainingError: a service stayed away or refused.
        """
        self._next_version = version
        with self._waiting.running():
            while True:
                self._changed.clear()
                self._raise_failure()
                await self._heal()
                groups = self._take(version)
                if groups is not None:
                    break
                self._fill()
                await self._changed.wait()
        self._next_version = version + 1  # what is started from now on waits for the next step
        self._fill()
        return groups

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
            async with room:
                group = await self._draw(task, n, stream, temperature)
                if rewards:
                    await self._score(group, rewards)
                on_group(group)
                return group

        work = [asyncio.create_task(one(task)) for task in tasks]
        try:
            await self._finish(work)
            return [task.result() for task in work]
        finally:
            await _cancel(work)

    def stats(self) -> RolloutStats:
        """What happened so far."""
        return RolloutStats(
            seconds=self._now() - self._began,
            sampling_seconds=self._sampling.seconds,
            scoring_seconds=self._scoring.seconds,
            waiting_seconds=self._waiting.seconds,
            faults_survived=self._sampler.patience.faults_survived + self._rewards.faults_survived,
            **self._counts,
        )

    def state(self) -> dict[str, Any]:
        """A tree for `Checkpoints.save`, between two steps.

        Tasks in flight are not in it but as tasks: they are sampled again after `load_state`.
        """
        return {
            "order": self._order.state_dict(),
            "buffer": self._buffer.state_dict(),
            "rewards": self._rewards.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a saved state, before `start`.

        Raises:
            DataError: the prompts or the seed are others.
        """
        self._buffer.load_state_dict(state["buffer"])
        self._order.load_state_dict(state["order"], held=self._buffer.uids)
        self._rewards.load_state(state["rewards"])

    async def close(self) -> None:
        """Leave what is in flight, and close the connections."""
        self._closed = True
        await _cancel([*self._tasks])
        await self._sampler.close()
        await self._rewards.close()

    def _take(self, version: int) -> list[Group] | None:
        taken = self._buffer.take(self._settings.prompts_per_step, version)
        for task in taken.expired:
            self._order.give_back(task)
        self._counts["expired_groups"] += len(taken.expired)
        for group in taken.groups or ():
            self._order.done(group.task)
        return taken.groups

    def _fill(self) -> None:
        """Start as many tasks as the bound allows."""
        per_step = self._settings.prompts_per_step
        while (
            self._may_fill
            and self._fresh.is_set()
            and not self._closed
            and self._failure is None
            and self._buffer.may_start(
                self._sampler_version, self._next_version, per_step, self._last_version
            )
        ):
            task = self._order.next()
            self._buffer.start(task, self._sampler_version)
            running = asyncio.create_task(self._run(task), name=f"rollout {task.uid}")
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)

    async def _run(self, task: Task) -> None:
        """Sample and score one task, and buffer its group."""
        try:
            group = await self._draw(task, self._settings.samples_per_prompt, 0, None)
            await self._score(group, self._rewards)
        except BaseException as error:
            self._buffer.drop(task)
            self._order.give_back(task)
            if not isinstance(error, Exception):
                raise
            self._failure = self._failure or error
        else:
            self._buffer.put(group)
            self._counts["groups"] += 1
            self._counts["completions"] += len(group.samples)
            self._counts["tokens"] += sum(sample.tokens for sample in group.samples)
        self._changed.set()

    async def _draw(self, task: Task, n: int, stream: int, temperature: float | None) -> Group:
        """The samples of one task, unscored; waits where the sampler has lost its weights."""
        seed = None
        if self._settings.deterministic:
            seed = sampling_seed(self._settings.seed, stream, task.uid)
        begin = self._now()
        while True:
            await self._fresh.wait()
            version, given = self._sampler_version, self._given
            if stream == 0:
                self._buffer.start(task, version)
            try:
                with self._sampling.running():
                    return await self._sampler.sample(
                        task, n, min_version=version, temperature=temperature, seed=seed
                    )
            except StaleSampler as error:
                if self._now() - begin > self._settings.patience:
                    raise ServiceGone(
                        f"{self._sampler.patience.service} at {self._sampler.patience.address} "
                        f"keeps losing its weights: {error}"
                    ) from error
                if given == self._given:
                    self._lost()

    async def _score(self, group: Group, rewards: Scores) -> Group:
        with self._scoring.running():
            return await rewards.score(group)

    def _lost(self) -> None:
        """The sampler has older weights than were published: it was restarted."""
        if self._fresh.is_set():
            logger.warning("the sampler lost its weights; they are published to it again")
            self._counts["stale_sampler"] += 1
            if self._sampler.patience.faults_survived == self._survived:
                self._sampler.patience.away()  # it came back before anybody missed it
            self._fresh.clear()
            self._stale.set()
            self._changed.set()

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

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
