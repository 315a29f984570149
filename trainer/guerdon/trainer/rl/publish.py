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
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from guerdon.client import FailedPrecondition, GuerdonError, InvalidArgument
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import (
    Canary,
    PolicyInfo,
    SharedPath,
    TensorSpec,
    WeightUpdate,
)
from guerdon.trainer.errors import OutputError, SettingsError, TrainingError
from guerdon.trainer.rl.prompts import Prompts
from guerdon.trainer.rl.sampling import GroupSampler
from guerdon.trainer.rl.types import Ints

CANARY_TOKENS = 64
"""Most tokens of a canary: enough to see every layer, and quick to compute."""

_PATTERN = "guerdon-weights-*.safetensors*"


class PublishRefused(TrainingError):
    """The sampler did not take the weights; those before them still serve."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What is published."""

    version: int
    specs: Sequence[TensorSpec]
    """Every tensor by its name in the checkpoint, in the dtype to be published; tied ones once."""
    tensors: Callable[[], Iterable[torch.Tensor]]
    """The tensors in the order of `specs`. Called anew for every attempt: it gives the same each
    time, and may not be collective."""
    canaries: Sequence[Canary] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """The sampler serves it now."""

    version: int
    seconds: float
    """From the first attempt until the sampler had switched."""
    bytes: int
    """Of all tensors."""
    update: WeightUpdate | None
    """What the sampler says; None when the answer was lost and only the result could be seen."""


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
        mode: Literal["stream", "shared"] = "stream",
        shared_dir: str = "",
        canary_tolerance: float = 0.0,
    ) -> None:
        if mode == "shared" and not shared_dir:
            raise SettingsError("shared_dir must name a folder when publish is shared")
        self._client: AsyncPolicyClient = sampler.client
        self._patience = sampler.patience
        self._mode = mode
        self._folder = Path(shared_dir).absolute()
        self._tolerance = canary_tolerance

    async def publish(self, weights: Weights, *, reset: bool = False) -> Published:
        """Make the sampler serve these weights, and prove that it does.

        Args:
            weights: of a version above the one that serves, unless `reset` is set.
            reset: a new history begins: any version is taken, and what is being drawn is ended.

        Raises:
            PublishRefused: the sampler says why.
            TrainingError: it stayed away, or the weights can't be written to the shared folder.
        """
        begin = time.monotonic()
        shared = await self._write(weights) if self._mode == "shared" else None
        tries = 0

        async def attempt() -> WeightUpdate | None:
            nonlocal tries
            tries += 1
            if tries > 1 and await self._arrived(weights):
                return None
            return await self._client.update_weights(
                weights.version,
                shared or as_bytes(weights.tensors()),
                specs=weights.specs,
                canaries=weights.canaries,
                mean_tolerance=self._tolerance,
                reset=reset,
            )

        try:
            update = await self._patience.ask(attempt)
        except (FailedPrecondition, InvalidArgument) as error:
            raise PublishRefused(
                f"the sampler at {self._patience.address} refuses version {weights.version} of "
                f"the weights: {error.message}"
            ) from error
        except GuerdonError as error:
            raise self._patience.refused(error) from error
        size = sum(size_of(spec) for spec in weights.specs)
        return Published(weights.version, time.monotonic() - begin, size, update)

    async def check(self) -> PolicyInfo:
        """What the sampler says of itself.

        Raises:
            SettingsError: it does not take weights in this mode.
            TrainingError: it stayed away.
        """
        policy = await self._patience.insist(self._client.get_policy)
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


def write_shared(folder: Path, weights: Weights) -> SharedPath:
    """Write the weights as one file, whole or not at all, and remove those of older versions.

    The sampler has read an older one by the time that a newer one is written, and a sampler that
    comes back is given the newest again.

    Raises:
        OSError: the system refuses.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"guerdon-weights-{weights.version:08d}.safetensors"
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    tensors = zip(weights.specs, weights.tensors(), strict=True)
    # A copy where memory is shared: safetensors refuses overlapping tensors.
    found = {spec.name: tensor.detach().cpu().contiguous().clone() for spec, tensor in tensors}
    digest = hashlib.sha256()
    for data in as_bytes(found.values()):
        digest.update(data)
    remove_shared(folder)
    save_file(found, part, metadata={"format": "pt"})
    part.rename(target)
    return SharedPath(target, digest.digest())


def remove_shared(folder: Path) -> None:
    """Remove all weights that were written to the folder, and none of its other files."""
    for old in folder.glob(_PATTERN):
        old.unlink(missing_ok=True)


def checksum(weights: Weights) -> bytes:
    """SHA-256 over the bytes of all tensors, in the order of the specs."""
    digest = hashlib.sha256()
    for data in as_bytes(weights.tensors()):
        digest.update(data)
    return digest.digest()


def as_bytes(tensors: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    """Each tensor's bytes, row-major; little-endian, as every machine that torch runs on."""
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        array: Any = flat.view(torch.uint8).numpy()
        yield memoryview(array)


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor."""
    return int(np.prod(spec.shape, dtype=np.int64)) * (4 if spec.dtype == "float32" else 2)
