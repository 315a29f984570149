"""Two tiny models, their services, and a run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runs.processes import Service, reward_service, sampler_service
from tests.runs.whole import Finished, Recipe, finished
from tests.support.tiny import CHATML, tiny_checkpoint


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with two layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("runs") / "policy", "llama", causal_lm=True)


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, whose template is its own: it is sent the texts that samples.jsonl holds."""
    template = "{# the judge's own #}" + CHATML
    folder = tmp_path_factory.mktemp("runs") / "judge"
    return tiny_checkpoint(folder, "llama", seed=5, chat_template=template)


@pytest.fixture(scope="session")
def sampler(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A sampler that lives."""
    yield from sampler_service.__wrapped__(tmp_path_factory.mktemp("sampler"), policy)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def rewards(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A reward server that lives."""
    yield from reward_service.__wrapped__(tmp_path_factory.mktemp("rewards"), m=judge)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def unbroken(
    policy: Path, sampler: Service, rewards: Service, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A deterministic run of PPO, from its beginning to its end."""
    recipe = Recipe(policy, sampler, rewards, "--deterministic")
    return finished(recipe, tmp_path_factory.mktemp("unbroken"))
