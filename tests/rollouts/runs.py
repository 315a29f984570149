"""A run without a learner: rollouts over fake services on real sockets, and its books."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.rollouts.support import tokenizer

from guerdon.client.policy_types import Canary, TensorSpec
from guerdon.trainer.common.services.prompts import PromptOrder, Prompts
from guerdon.trainer.common.services.publishing import Publisher
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.common.services.weights import Weights
from guerdon.trainer.rl.rollout.rollouts import Rollouts
from guerdon.trainer.rl.settings import RunSettings

SPECS = (TensorSpec("a.weight", "float32", (4, 2)), TensorSpec("b.weight", "bfloat16", (3,)))
"""Those of `tests.support.formula_engine` too."""


def weights(version: int) -> Weights:
    """Tensors that tell their version."""

    def tensors() -> list[torch.Tensor]:
        return [torch.full((4, 2), float(version)), torch.full((3,), 0.5, dtype=torch.bfloat16)]

    return Weights(version, SPECS, tensors, [Canary([3, 4, 5], [-1.0, -2.0])])


@dataclass
class Run:
    """What a run loop does, with its learner asleep."""

    settings: RunSettings
    order: PromptOrder
    sampler: GroupSampler
    publisher: Publisher
    version: int = 0
    consumed: list[Group] = field(default_factory=list)
    staleness: dict[int, int] = field(default_factory=dict)
    """Tokens by how many versions old they were when consumed."""
    republished: int = 0
    rollouts: Rollouts = field(init=False)

    async def publish(self, version: int, *, reset: bool = False) -> None:
        await self.publisher.publish(weights(version), reset=reset)
        self.version = version

    async def republish(self) -> int:
        self.republished += 1
        await self.publish(self.version, reset=True)
        return self.version

    async def begin(self, state: dict[str, Any] | None = None) -> None:
        """Publish, and start; with a state, go on from it."""
        if state is not None:
            self.rollouts.load_state(state)
        await self.publish(max(self.version, 1), reset=True)
        await self.rollouts.start(self.version)

    async def step(self, learn: Callable[[], Awaitable[None]] | None = None) -> list[Group]:
        """One step, with its books."""
        groups = await self.rollouts.next_batch(self.version)
        assert len(groups) == self.settings.prompts_per_step
        for group in groups:
            assert len(group.samples) == self.settings.samples_per_prompt
            for sample in group.samples:
                for version in sample.versions_T.tolist():
                    age = self.version - version
                    self.staleness[age] = self.staleness.get(age, 0) + 1
        self.consumed += groups
        if learn is not None:
            await learn()
        await self.publish(self.version + 1)
        self.rollouts.published(self.version)
        return groups

    def check_books(self, prompts: Prompts) -> None:
        """No task was lost or trained on twice, and every epoch is a permutation."""
        uids = [group.task.uid for group in self.consumed]
        assert len(set(uids)) == len(uids)
        state = self.order.state_dict()
        outstanding = [*state["out"], *state["waiting"]]
        assert sorted([*uids, *outstanding]) == list(range(state["next"]))
        rows: dict[int, list[int]] = {}
        for uid in range(state["next"]):
            rows.setdefault(uid // len(prompts), []).append(self.order.task(uid).row.index)
        for epoch, found in rows.items():
            assert len(set(found)) == len(found), f"epoch {epoch}"
        for group in self.consumed:
            assert group.task.row == self.order.task(group.task.uid).row
            for sample in group.samples:
                assert sample.reward == sum(sample.parts.values())


@asynccontextmanager
async def running(
    settings: RunSettings, prompts: Prompts, sampler: str, version: int = 0
) -> AsyncIterator[Run]:
    """A run that is closed in the end; call `begin`."""
    order = PromptOrder(prompts, settings.seed)
    policy = GroupSampler(
        sampler,
        tokenizer(),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        patience=settings.patience,
        request_timeout=settings.request_timeout,
    )
    rewards = RewardSource(
        settings.reward,
        settings.verifier,
        patience=settings.patience,
        request_timeout=settings.request_timeout,
    )
    run = Run(settings, order, policy, Publisher(policy), version)
    run.rollouts = Rollouts(settings, order, policy, rewards, republish=run.republish)
    try:
        yield run
    finally:
        await run.rollouts.close()


def sleeper(longest: float, seed: int = 0) -> Callable[[], Awaitable[None]]:
    """A learner that takes random times."""
    chance = random.Random(seed)

    async def learn() -> None:
        await asyncio.sleep(chance.uniform(0.0, longest))

    return learn
