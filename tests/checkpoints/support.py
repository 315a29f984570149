"""Ways to spoil a checkpoint, and to load one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.checkpoints.weights import load_weights


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    return load_weights(checkpoint, dtype=dtype, device=torch.device("cpu"))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps(data))
