"""Checkpoints of every architecture, made once for a test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint("llama", num_labels=2)` gives a folder, the same one for the same arguments."""
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def make(architecture: str, **settings: Any) -> Path:
        key = repr((architecture, sorted(settings.items())))
        if key not in made:
            made[key] = tiny_checkpoint(root / str(len(made)), architecture, **settings)
        return made[key]

    return make
