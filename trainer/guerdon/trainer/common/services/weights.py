"""What is published, and the forms in which it travels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guerdon.client.policy_types import Canary, SharedPath, TensorSpec
from guerdon.models import apply_umask

_PATTERN = "guerdon-weights-*.safetensors*"


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
    apply_umask(part)
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
