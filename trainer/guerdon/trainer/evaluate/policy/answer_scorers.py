"""The rewards, the held-out rewards and the harm classifier, asked together."""

from __future__ import annotations

import asyncio
from typing import Any

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.evaluate.policy.columns import HARM, HELDOUT, Columns


class AnswerScorers:
    """All that scores answers.

    Args:
        rewards: their weighted sum is the reward.
        heldout: the same, measured beside it; perhaps empty.
        harm: one classifier, or nothing.
        columns: where the latter two go.
    """

    def __init__(
        self, rewards: RewardSource, heldout: RewardSource, harm: RewardSource, columns: Columns
    ) -> None:
        self._rewards, self._columns = rewards, columns
        self._beside = {
            name: source for name, source in ((HELDOUT, heldout), (HARM, harm)) if source.weights
        }

    async def start(self) -> None:
        """Find the models and pin their revisions.

        Raises:
            TrainingError: one can't be had.
        """
        for source in (self._rewards, *self._beside.values()):
            await source.start()

    async def score(self, group: Group) -> Group:
        """Fill in the rewards; what is measured beside them is on the disk when this returns.

        Raises:
            TrainingError: a score can't be had.
        """
        names = [*self._beside]
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._rewards.score(group))
                work = [tasks.create_task(self._beside[name].totals(group)) for name in names]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if names:
            found = dict(zip(names, (task.result() for task in work), strict=True))
            self._columns.add(group.task.uid, found)
        return group

    def state(self) -> dict[str, dict[str, Any]]:
        """Revisions of the models, as JSON can hold them."""
        return {"rewards": self._rewards.state()} | {
            name: source.state() for name, source in self._beside.items()
        }

    def pin(self, state: dict[str, dict[str, Any]]) -> None:
        """Refuse other revisions than an earlier part of the run had; call it before `start`."""
        self._rewards.load_state(state.get("rewards", {}))
        for name, source in self._beside.items():
            source.load_state(state.get(name, {}))


def check_version(group: Group, version: int, sampler: str) -> None:
    """Refuse completions by other weights than were published: somebody else uses the sampler.

    Raises:
        TrainingError: there are such.
    """
    newest = max(int(sample.versions_T.max()) for sample in group.samples)
    if newest != version:
        raise TrainingError(
            f"the sampler at {sampler} was given other weights (version {newest}) while this went "
            f"on with version {version}: a sampler serves one run at a time"
        )
