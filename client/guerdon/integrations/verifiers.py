"""A served reward model as a reward of verifiers' tasks (verifiers 0.3.1 and newer).

    # my_rewards.py
    helpful = RewardFunction(AsyncRewardClient("localhost:50051", timeout=600), "helpful")

    # settings of the task
    [env.taskset.task.rewards.helpful]
    fn = "my_rewards:helpful"

Nothing of verifiers is imported.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Unpack

from guerdon.client import AsyncRewardClient
from guerdon.client.config import ScoringOptions
from guerdon.client.errors import invalid
from guerdon.integrations.conversation import exchange
from guerdon.integrations.scores import DroppedText


class RewardFunction:
    """Called by a task with a trace, it returns the score of the trace's last answer.

    An error of the client goes through: verifiers then has no reward, and the rollout an error.

    Args:
        rewards: where to ask. Its timeout is how long an outage may last.
        model: a name, an alias, or `name@revision`, which stays the same over a promotion.
        ignored_keys: keys of messages that are knowingly left out, such as `reasoning_content`.
        options: see `ScoringOptions`; the priority is `batch` unless it is given.
    """

    def __init__(
        self,
        rewards: AsyncRewardClient,
        model: str,
        *,
        ignored_keys: Collection[str] = (),
        **options: Unpack[ScoringOptions],
    ) -> None:
        self._rewards = rewards
        self._model = model
        self._ignored_keys = frozenset(ignored_keys)
        self._options: ScoringOptions = {"priority": "batch", **options}
        self._dropped_text = DroppedText(model)

    async def __call__(self, trace: Any) -> float:
        """The score of the last message, after those before it.

        Args:
            trace: a `verifiers.v1.Trace` of one branch that ends with the assistant's message.

        Raises:
            GuerdonError: it can't be scored, or there was no answer in time.
        """
        if trace.num_branches != 1:
            raise invalid("trace", f"has {trace.num_branches} branches, not one conversation")
        messages = [message.model_dump(exclude_none=True) for message in trace.messages]
        asked, said = exchange(
            messages[:-1],
            messages[-1:],
            ignored_keys=self._ignored_keys,
            where=("trace.messages", "trace.messages[-1:]"),
        )
        scored = await self._rewards.score_one(self._model, asked, [said], **self._options)
        self._dropped_text.note(scored.scores)
        return scored.values[0]
