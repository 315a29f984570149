"""What RFT asks of the sampler and of the rewards. The connections live for one phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guerdon.trainer.errors import SettingsError
from guerdon.trainer.rl import rft_model
from guerdon.trainer.rl.inputs import RunInputs
from guerdon.trainer.rl.prompts import PromptOrder
from guerdon.trainer.rl.publish import Publisher, canary_sequences
from guerdon.trainer.rl.rewards import RewardSource
from guerdon.trainer.rl.rollouts import Rollouts
from guerdon.trainer.rl.sampling import GroupSampler
from guerdon.trainer.rl.settings import RFTSettings
from guerdon.trainer.rl.types import Group, Task
from guerdon.trainer.rl.weights import Weights

_DRAWN = 3
"""The stream of seeds for what is trained on; evaluations have others, and 0 is of tasks in a
buffer, which RFT has none of."""


class Services:
    """The sampler and the rewards of a run; an async context manager.

    Args:
        settings: of the run.
        inputs: its prompts and tokenizer.
        shared_dir: where weights go when they are published by a shared disk.

    Raises:
        SettingsError: an address or a reward is wrong.
    """

    def __init__(self, settings: RFTSettings, inputs: RunInputs, shared_dir: str) -> None:
        self._settings, self._inputs = settings, inputs
        waits: dict[str, Any] = {
            "patience": settings.patience,
            "request_timeout": settings.request_timeout,
        }
        self._sampler = GroupSampler(
            settings.sampler, inputs.tokenizer,
            max_tokens=settings.max_tokens, temperature=settings.temperature, **waits,
        )  # fmt: skip
        self.rewards = RewardSource(settings.reward, settings.verifier, **waits)
        self.heldout = RewardSource(settings.heldout_reward, setting="heldout_reward", **waits)
        if settings.publish == "nccl":
            raise SettingsError("publish is nccl, which rft can't: it is stream or shared")
        self._publisher = Publisher(
            self._sampler, mode=settings.publish, shared_dir=settings.shared_dir or shared_dir,
            canary_tolerance=settings.canary_tolerance,
        )  # fmt: skip
        self._rollouts = Rollouts(
            settings, PromptOrder(inputs.prompts, settings.seed), self._sampler, self.rewards,
            republish=self._republish, fill=False,
        )  # fmt: skip
        self._weights = Weights(0, (), tuple)
        self.publish_dtype = "float32"
        """Of the weights, once they were published."""

    async def __aenter__(self) -> Services:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rollouts.close()
        await self.heldout.close()
        await self._publisher.close()

    @property
    def faults(self) -> dict[str, int]:
        """Survived, by kind."""
        stats = self._rollouts.stats()
        return {
            "services": stats.faults_survived + self.heldout.faults_survived,
            "sampler_restarts": stats.stale_sampler,
        }

    async def start(
        self, model: Any, version: int, pinned: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Publish the weights, with proof, and find the reward models.

        Args:
            model: without LoRA.
            version: what its weights shall be called.
            pinned: what an earlier part of the run was given by this.

        Returns:
            The revisions of the reward models.

        Raises:
            TrainingError: a service stayed away or refused, or has another dtype.
        """
        policy = await self._publisher.check()
        asked = self._settings.publish_dtype
        self.publish_dtype = dtype = policy.dtype if asked == "auto" else asked
        if dtype != policy.dtype:
            raise SettingsError(
                f"publish_dtype is {dtype}, but the sampler computes in {policy.dtype}"
            )
        sequences = canary_sequences(self._inputs.eval_prompts, self._settings.canaries)
        self._weights = rft_model.weights(
            model, version, dtype, sequences, computed=self._settings.dtype
        )
        await self._publisher.publish(self._weights, reset=True)
        both = (self._inputs.prompts, self._inputs.eval_prompts)
        longest, largest = max(p.longest for p in both), max(p.largest_id for p in both)
        await self._sampler.check(version, longest, largest)
        for name, source in (("rewards", self.rewards), ("heldout", self.heldout)):
            source.load_state(pinned.get(name, {}))
        await self._rollouts.start(version)
        await self.heldout.start()
        return {"rewards": self.rewards.state(), "heldout": self.heldout.state()}

    async def _republish(self) -> int:
        await self._publisher.publish(self._weights, reset=True)
        return self._weights.version

    async def draw(self, tasks: Sequence[Task], on_group: Callable[[Group], None]) -> None:
        """Sample and score tasks, in no order."""
        await self._rollouts.sample(
            tasks, self._settings.samples_per_prompt, rewards=self.rewards, stream=_DRAWN,
            on_group=on_group,
        )  # fmt: skip

    async def held_out(self, stream: int) -> tuple[list[Group], list[list[float]] | None]:
        """Scored completions of the held-out prompts, and what the other reward says of them.

        Args:
            stream: of seeds: one of its own for each evaluation.
        """
        groups = await self._rollouts.sample(
            self._inputs.eval_prompts.tasks(), self._settings.eval_samples,
            rewards=self.rewards, stream=stream,
        )  # fmt: skip
        if not self._settings.heldout_reward:
            return groups, None
        weights = self.heldout.weights
        other = []
        for group in groups:
            parts = await self.heldout.parts(group.task.row, group.samples)
            other.append([sum(weights[k] * v for k, v in part.items()) for part in parts])
        return groups, other
