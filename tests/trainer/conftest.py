"""A tiny base, and preferences that a tiny model can learn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.tiny import CHATML, tiny_checkpoint
from tests.trainer.toy import write_toy


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model: its score head is missing, as in a real base."""
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "m", "llama", causal_lm=True)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train and held-out files of the toy preferences."""
    folder = tmp_path_factory.mktemp("toy")
    return (
        write_toy(folder / "train.jsonl", 96, seed=1),
        write_toy(folder / "eval.jsonl", 40, seed=2),
    )


@pytest.fixture(scope="session")
def encoder_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, whose head is not called `score`."""
    return tiny_checkpoint(tmp_path_factory.mktemp("encoder") / "m", "bert")


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat template in a file."""
    path = tmp_path_factory.mktemp("template") / "chat.jinja"
    path.write_text(CHATML, encoding="utf-8")
    return path
