"""The sampler and the rewards of a run, wired together once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.credentials import reach
from guerdon.trainer.common.services.drawing import Drawing, Republish
from guerdon.trainer.common.services.inputs import RunInputs
from guerdon.trainer.common.services.publishing import Publisher, canary_sequences
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.settings import PublishSettings
from guerdon.trainer.common.services.types import Group, Ints
from guerdon.trainer.common.services.weights import Weights

D = TypeVar("D", bound=Drawing)

MakeWeights = Callable[[str, Sequence[Ints]], Awaitable[Weights]]
"""The policy's weights as they are now, given their dtype and the canaries' token ids."""

NewDrawing = Callable[[GroupSampler, RewardSource, Republish], D]


class Connections(Generic[D]):
    """The sampler and the rewards of a run; an async context manager.

    Args:
        settings: of the run.
        inputs: its prompts and tokenizer.
        new_drawing: makes what draws completions and has them scored.
        shared_dir: where weights go when they are published by a shared disk and the settings
            name no folder.
        make_weights: what is published.
        publish_dtype: of the published weights; `auto` is the sampler's own.
        on_lost: told when the sampler has lost its weights, before it is given them again.

    Raises:
        SettingsError: an address or a reward is wrong.
    """

    def __init__(
        self,
        settings: PublishSettings,
        inputs: RunInputs,
        new_drawing: NewDrawing[D],
        shared_dir: str,
        make_weights: MakeWeights,
        *,
        publish_dtype: str = "auto",
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._inputs = settings, inputs
        self._make_weights, self._on_lost = make_weights, on_lost
        self._publish_dtype = publish_dtype
        self._publishing = asyncio.Lock()
        services = reach(settings)
        self._sampler = GroupSampler(
            settings.sampler,
            inputs.tokenizer,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            **services,
        )
        scoring = services | {
            "normalize": settings.reward_normalize,
            "rules": RequestRules.of(
                settings, inputs.tokenizer, inputs.prompts, inputs.eval_prompts
            ),
        }
        self.rewards = RewardSource(settings.reward, settings.verifier, **scoring)
        self.heldout = RewardSource(settings.heldout_reward, setting="heldout_reward", **scoring)
        """Measured and never trained on; may have nothing in it."""
        self._publisher = Publisher(
            self._sampler,
            mode=settings.publish,
            shared_dir=_shared_dir(settings) or shared_dir,
            canary_tolerance=settings.canary_tolerance,
        )
        self.rollouts = new_drawing(self._sampler, self.rewards, self._republish)
        self._canaries = canary_sequences(inputs.eval_prompts, settings.canaries)
        self.dtype = "float32"
        """The dtype of the published weights, once `start` has asked the sampler."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rollouts.close()
        await self.heldout.close()
        await self._publisher.close()

    async def start(self) -> None:
        """Publish the weights, with proof, find the reward models, and begin to sample.

        Raises:
            TrainingError: a service stayed away or refused, has another dtype, or can't take the
                prompts.
        """
        await self.rewards.start()  # first, for what they refuse ends the run before it samples
        await self.heldout.start()
        policy = await self._publisher.check()
        asked = self._publish_dtype
        self.dtype = policy.dtype if asked == "auto" else asked
        if self.dtype != policy.dtype:
            raise SettingsError(
                f"publish_dtype is {self.dtype}, but the sampler computes in {policy.dtype}"
            )
        version = await self.publish(reset=True)
        both = (self._inputs.prompts, self._inputs.eval_prompts)
        longest, largest = max(p.longest for p in both), max(p.largest_id for p in both)
        await self._sampler.check(version, longest, largest)
        await self.rollouts.start(version)

    async def publish(self, *, reset: bool = False) -> int:
        """Make the sampler serve the weights as they are now; their version.

        Raises:
            TrainingError: it refused them, or stayed away.
        """
        async with self._publishing:
            weights = await self._make_weights(self.dtype, self._canaries)
            await self._publisher.publish(weights, reset=reset)
        return weights.version

    async def _republish(self) -> int:
        self._on_lost()
        return await self.publish(reset=True)

    async def held_out(
        self, samples: int, stream: int
    ) -> tuple[list[Group], list[list[float]] | None]:
        """Scored completions of the held-out prompts, with the scores of the held-out reward.

        Args:
            samples: completions of each prompt.
            stream: of seeds: one of its own for each evaluation.

        Raises:
            TrainingError: a service stayed away or refused.
        """
        groups = await self.rollouts.sample(
            self._inputs.eval_prompts.tasks(), samples, rewards=self.rewards, stream=stream
        )
        if not self._settings.heldout_reward:
            return groups, None
        return groups, [await self.heldout.totals(group) for group in groups]

    @property
    def revisions(self) -> dict[str, dict[str, Any]]:
        """The revisions of the reward models, as JSON can hold them."""
        return {"rewards": self.rewards.state(), "heldout": self.heldout.state()}

    def pin(self, revisions: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse other revisions than an earlier part of the run had; call it before `start`."""
        self.rewards.load_state(revisions.get("rewards", {}))
        self.heldout.load_state(revisions.get("heldout", {}))

    @property
    def faults(self) -> dict[str, int]:
        """The faults survived, by kind, as in summary.json."""
        stats = self.rollouts.stats()
        return {
            "services": stats.faults_survived + self.heldout.faults_survived,
            "sampler_restarts": stats.stale_sampler,
        }


def _shared_dir(settings: PublishSettings) -> str:
    """A folder of the run's own: two runs must not take each other's weights away."""
    if not settings.shared_dir:
        return ""
    output = str(Path(settings.output).absolute())
    own = f"{Path(output).name}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"
    return str(Path(settings.shared_dir) / own)
