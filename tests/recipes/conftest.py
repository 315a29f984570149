"""A tiny policy and prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.recipes.support import write_prompts
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("policy") / "m", "llama", causal_lm=True)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(4)]
    return write_prompts(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    return write_prompts(tmp_path / "held.jsonl", [{"prompt": turns, "answer": 2}])
