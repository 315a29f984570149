"""A tiny policy, and preferences that it can learn."""

from __future__ import annotations

import json
import shutil
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


@pytest.fixture(scope="session")
def begin(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the recipes begin from: a language model, and one for a reward model."""
    folder = tmp_path_factory.mktemp("base") / "m"
    return {"policy": policy, "base": tiny_checkpoint(folder, "llama", causal_lm=True)}


@pytest.fixture(scope="session")
def dropping(begin: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, with dropout in their attention."""
    found = {}
    for name, folder in begin.items():
        found[name] = tmp_path_factory.mktemp("dropping") / name
        shutil.copytree(folder, found[name])
        config = json.loads((folder / "config.json").read_text())
        (found[name] / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    return found
