"""A tiny policy, and preferences that it can learn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import write_toy


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model with a chat template."""
    return tiny_checkpoint(tmp_path_factory.mktemp("policy") / "m", "llama", causal_lm=True)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train and held-out files of the toy preferences."""
    folder = tmp_path_factory.mktemp("toy")
    return (
        write_toy(folder / "train.jsonl", 64, seed=1),
        write_toy(folder / "eval.jsonl", 24, seed=2),
    )
