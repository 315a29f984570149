"""Publishing: the learner's weights become a version of the sampler's.

What is published is told by `Weights`, whoever makes it; how it travels is the mode's business:

stream   over gRPC, in pieces
shared   as a safetensors file in a folder that both sides reach; older files are removed
nccl     by NCCL from the trainer's GPU (see `nccl.py`)

In every mode the sampler takes all or nothing, and proves it by canaries: fixed sequences whose
log-probabilities must be the trainer's own; and by a checksum, but for NCCL.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import numpy as np

from guerdon.client import FailedPrecondition, GuerdonError, InvalidArgument
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import PolicyInfo, SharedPath, WeightUpdate
from guerdon.trainer.common.errors import OutputError, SettingsError, TrainingError
from guerdon.trainer.common.services.nccl import check_nccl, update_by_nccl
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.types import Ints
from guerdon.trainer.common.services.weights import (
    Weights,
    as_bytes,
    checksum,
    remove_shared,
    write_shared,
)

CANARY_TOKENS = 64
"""Most tokens of a canary: enough to see every layer, and quick to compute."""


class PublishRefused(TrainingError):
    """The sampler did not take the weights; those before them still serve."""


def canary_sequences(prompts: Prompts, count: int) -> list[Ints]:
    """Fixed token sequences for canaries: held-out prompts, spread over the file.

    A prompt goes through every layer and the head; a continuation would prove nothing more.

    Raises:
        TrainingError: no prompt is long enough.
    """
    rows = [ids[:CANARY_TOKENS] for ids in prompts.prompt_ids if len(ids) > 1]
    if count and not rows:
        raise TrainingError(f"{prompts.source}: no prompt has the two tokens that a canary needs")
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places.tolist()]


class Publisher:
    """Publishes to one sampler.

    Args:
        sampler: its connection and patience are used.
        mode: how the weights travel.
        shared_dir: for `shared`, a folder that both sides reach under one name.
        canary_tolerance: mean difference of log-probabilities that is let pass; 0 is the
            sampler's own default.

    Raises:
        SettingsError: the mode lacks its folder.
    """

    def __init__(
        self,
        sampler: GroupSampler,
        *,
        mode: Literal["stream", "shared", "nccl"] = "stream",
        shared_dir: str = "",
        canary_tolerance: float = 0.0,
    ) -> None:
        if mode == "shared" and not shared_dir:
            raise SettingsError("shared_dir must name a folder when publish is shared")
        self._client: AsyncPolicyClient = sampler.client
        self._updates: AsyncPolicyClient = sampler.updates
        self._patience = sampler.patience
        self._mode = mode
        self._folder = Path(shared_dir).absolute()
        self._tolerance = canary_tolerance

    async def publish(self, weights: Weights, *, reset: bool = False) -> WeightUpdate | None:
        """Make the sampler serve these weights, and prove that it does.

        Args:
            weights: of a version above the one that serves, unless `reset` is set.
            reset: a new history begins: any version is taken, and what is being drawn is ended.

        Returns:
            What the sampler says; None when the answer was lost and only the result could be seen.

        Raises:
            PublishRefused: the sampler says why.
            TrainingError: it stayed away, or the weights can't be written to the shared folder.
        """
        shared = await self._write(weights) if self._mode == "shared" else None
        tries = 0

        async def attempt() -> WeightUpdate | None:
            nonlocal tries
            tries += 1
            if tries > 1 and await self._arrived(weights):
                return None
            return await self._update(weights, shared, reset)

        try:
            return await self._patience.ask(attempt)
        except (FailedPrecondition, InvalidArgument) as error:
            if not reset and await self._patience.insist(lambda: self._arrived(weights)):
                # A sampler that was lost got this version while the step before was ending.
                return None
            raise PublishRefused(
                f"the sampler at {self._patience.address} refuses version {weights.version} of "
                f"the weights: {error.message}"
            ) from error
        except GuerdonError as error:
            raise self._patience.refused(error) from error

    async def check(self) -> PolicyInfo:
        """What the sampler says of itself.

        Raises:
            SettingsError: it does not take weights in this mode.
            TrainingError: it stayed away.
        """
        policy = await self._patience.insist(self._client.get_policy)
        if self._mode == "nccl":
            check_nccl(policy.nccl, self._patience.address)
        if self._mode == "shared" and not policy.shared_path:
            raise SettingsError(
                f"publish is shared, but the sampler at {self._patience.address} takes no weights "
                "by a path: allow it there, or use --publish stream"
            )
        return policy

    async def close(self) -> None:
        """Remove what was written to the shared folder."""
        if self._mode == "shared":
            await asyncio.to_thread(remove_shared, self._folder)

    async def _update(
        self, weights: Weights, shared: SharedPath | None, reset: bool
    ) -> WeightUpdate:
        if self._mode == "nccl":
            return await update_by_nccl(
                self._updates,
                weights,
                self._patience.address,
                mean_tolerance=self._tolerance,
                reset=reset,
            )
        return await self._updates.update_weights(
            weights.version,
            shared or as_bytes(weights.tensors()),
            specs=weights.specs,
            canaries=weights.canaries,
            mean_tolerance=self._tolerance,
            reset=reset,
        )

    async def _arrived(self, weights: Weights) -> bool:
        """Whether an attempt whose answer was lost was taken after all."""
        policy = await self._client.get_policy()
        if policy.weight_version != weights.version:
            return False
        return policy.weight_sha256 == await asyncio.to_thread(checksum, weights)

    async def _write(self, weights: Weights) -> SharedPath:
        try:
            return await asyncio.to_thread(write_shared, self._folder, weights)
        except OSError as error:
            raise OutputError(f"can't write weights to {self._folder}: {error}") from error
