"""What tensors a checkpoint has, and whether others could take their places."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from guerdon.sampler.types import TensorSpec
from guerdon.serving.errors import CheckpointRefused, UpdateRefused

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CODES = {name: code for code, name in _NAMES.items()}
_MOST_HEADER = 100 * 1024 * 1024
_SHOWN = 5
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""What an output layer that is tied shares, as checkpoints name it."""


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor."""
    return math.prod(spec.shape) * BYTES[spec.dtype]


def read_specs(path: Path) -> dict[str, TensorSpec]:
    """The tensors of a safetensors file, from its header.

    Raises:
        ValueError: it is none, or has other types than floating point numbers.
    """
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MOST_HEADER + 1
        if length > _MOST_HEADER:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    found = {}
    for name, of in header.items():
        if name == "__metadata__":
            continue
        dtype = _NAMES.get(of["dtype"])
        if dtype is None:
            raise ValueError(f"{path.name}: {name} is of type {of['dtype']}")
        found[name] = TensorSpec(name, dtype, tuple(of["shape"]))
    return found


def safetensors_header(specs: Sequence[TensorSpec]) -> bytes:
    """The beginning of a safetensors file whose tensors follow one after the other."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        end = at + tensor_bytes(spec)
        entries[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        CheckpointRefused: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointRefused(f"{folder} has no safetensors weights")
    return files


class CheckpointShape:
    """The tensors that an update must have.

    Args:
        folder: of the policy.
        dtype: of the computation, in which weights come.
        tied: whether the output layer shares the embeddings' weights.
    """

    def __init__(self, folder: Path, *, dtype: str, tied: bool) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in weight_files(folder):
            try:
                self.shapes |= {name: spec.shape for name, spec in read_specs(file).items()}
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointRefused(f"{file} can't be read: {error}") from error
        self.dtype = dtype
        self._optional: dict[str, tuple[int, ...] | None] = {}
        if tied:
            self.shapes.pop("lm_head.weight", None)
            self._optional["lm_head.weight"] = next(
                (shape for name, shape in self.shapes.items() if name.endswith(_EMBEDDINGS)), None
            )

    def check(self, specs: Iterable[TensorSpec]) -> None:
        """Refuse what could not take the checkpoint's place.

        Raises:
            UpdateRefused: says which tensors, and what is wrong with them.
        """
        given: dict[str, TensorSpec] = {}
        faults: list[str] = []
        for spec in specs:
            if spec.name in given:
                faults.append(f"{spec.name} comes twice")
            given[spec.name] = spec
            expected = self.shapes.get(spec.name, self._optional.get(spec.name))
            if expected is None:
                if spec.name not in self._optional:
                    faults.append(f"{spec.name} is unknown")
            elif spec.shape != expected:
                faults.append(f"{spec.name} has the shape {list(spec.shape)}, not {list(expected)}")
            if spec.dtype != self.dtype:
                faults.append(f"{spec.name} is {spec.dtype}, not {self.dtype}")
        faults += [f"{name} is missing" for name in self.shapes if name not in given]
        if faults:
            more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise UpdateRefused(f"not the policy's tensors: {', '.join(faults[:_SHOWN])}{more}")
