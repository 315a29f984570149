"""A tiny policy, and samples that it might have drawn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.rft.support import group_of
from tests.support.tiny import tiny_checkpoint

from guerdon.trainer.common.services.types import Sample


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with two layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("policy") / "m", "llama", causal_lm=True)


@pytest.fixture
def samples() -> list[Sample]:
    """24 completions of various lengths, to 24 prompts."""
    draw = random.Random(4)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(10, 300) for _ in range(draw.randint(1, most))]

    return [group_of(i, tokens(9), [(tokens(7), 1.0)]).samples[0] for i in range(24)]
