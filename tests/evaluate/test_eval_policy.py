"""`guerdon eval policy` against the shipped fakes, with a real tiny model behind the sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.rft.living import LivingPolicy
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import write_rows

from guerdon.cli.main import main
from guerdon.client.testing import FakeRewardServer

MOST = 5
SAMPLES = 3


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("first") / "m", "llama", causal_lm=True)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tuned") / "m", "llama", causal_lm=True, seed=1)


class World:
    """Both services, over real sockets; the sampler draws by the weights that it was given."""

    def __init__(self, first: Path, folder: Path, prompts: int = 6) -> None:
        self.first, self.folder = first, folder
        self.living = LivingPolicy(first, MOST)
        self.sampler = self.living.server
        self.rewards = FakeRewardServer(models=("long", "vowels", "judge", "rude"))
        self.rewards.add_revision("vowels", "rev-1", lambda prompt, text: vowels(text))
        self.rewards.add_revision("rude", "rev-1", lambda prompt, text: vowels(text))
        rows = [
            {"prompt": f"question {i}", "kind": "odd" if i % 2 else "even"} for i in range(prompts)
        ]
        self.prompts = write_rows(folder / "prompts.jsonl", rows)

    def run(self, policy: Path, output: str, *more: str) -> int:
        """The command's exit code."""
        return main([
            "eval", "policy", "--policy", str(policy), "--reference", str(self.first),
            "--sampler", self.sampler.target, "--reward", f"{self.rewards.target}/long",
            "--reward", f"0.5*{self.rewards.target}/vowels", "--prompts", str(self.prompts),
            "--output", str(self.folder / output), "--max-tokens", str(MOST),
            "--samples-per-prompt", str(SAMPLES), "--dtype", "float32", "--patience", "5", *more,
        ])  # fmt: skip

    def found(self, output: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        folder = self.folder / output
        return json.loads((folder / "evaluation.json").read_text()), read_rows(
            folder / "samples.jsonl"
        )

    def drawn(self) -> int:
        return sum(method == "Generate" for method, _ in self.sampler.calls)


def vowels(text: Any) -> float:
    return float(sum(letter in "aeiou" for letter in str(text)))


def test_an_evaluation_is_left_whole(
    first: Path, tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(first, tmp_path)
    with world.sampler, world.rewards:
        assert world.run(first, "a", "--by", "kind") == 0
        assert world.run(tuned, "b", "--by", "kind", "--baseline", str(tmp_path / "a")) == 0
    found, rows = world.found("b")
    assert len(rows) == 18
    assert found["measures"]["reward"]["n"] == 6
    capfd.readouterr()
