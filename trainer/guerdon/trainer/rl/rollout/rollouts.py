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
import math
from dataclasses import replace
from typing import Any

from guerdon.together import cancel
from guerdon.trainer.common.services.drawing import Drawing, Republish
from guerdon.trainer.common.services.prompts import PromptOrder
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.types import Group, Task
from guerdon.trainer.common.services.utilisation import Meter, RolloutStats
from guerdon.trainer.rl.rollout.buffer import Buffer
from guerdon.trainer.rl.settings import OnlineSettings


class Rollouts(Drawing):
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
        last_version: of the weights that the last step trains: nothing is sampled beyond it.
    """

    def __init__(
        self,
        settings: OnlineSettings,
        order: PromptOrder,
        sampler: GroupSampler,
        rewards: RewardSource,
        *,
        republish: Republish,
        last_version: float = math.inf,
    ) -> None:
        super().__init__(
            settings, sampler, rewards, republish=republish, seeded=settings.deterministic
        )
        self._settings = settings
        self._order = order
        self._last_version = last_version
        self._buffer = Buffer(settings.max_staleness, ordered=settings.deterministic)
        self._next_version = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._waiting = Meter()
        self._counts = dict.fromkeys(("groups", "completions", "tokens", "expired_groups"), 0)

    async def start(self, version: int) -> None:
        """Find the reward models, and begin to sample.

        Args:
            version: what the sampler serves: the learner's weights, just published.

        Raises:
            TrainingError: a reward model can't be had.
        """
        self._next_version = version
        await super().start(version)

    def published(self, version: int) -> None:
        """The sampler serves this version now; what waited for it goes on."""
        super().published(version)
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

    def stats(self) -> RolloutStats:
        """What happened so far."""
        return replace(super().stats(), waiting_seconds=self._waiting.seconds, **self._counts)

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
        await cancel([*self._tasks])
        await super().close()

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
            self._fresh.is_set()
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

    def _starts(self, task: Task, version: int, stream: int) -> None:
        if stream == 0:
            self._buffer.start(task, version)

    def _lost(self) -> None:
        super()._lost()
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
