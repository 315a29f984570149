"""Whole runs on rewards and prompts of the user's own, by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.rft.living import LivingPolicy
from tests.rft.test_rft import Killed, die_after_groups
from tests.rollouts.support import settings
from tests.rollouts.test_http_reward import Service, ok, service
from tests.support.command import read_rows

from guerdon.cli.main import main
from guerdon.trainer.rl.inputs import read_inputs

__all__ = ["service"]

TOKENS, PROMPTS, SAMPLES = 5, 6, 4
FUNCTION = '''
def vowels(prompts, completions, words, level=None, **kwargs):
    """How many vowels a completion has, where its prompt may be rewarded at all."""
    assert len(prompts) == len(completions) == len(words)
    return [
        sum(letter in "aeiou" for letter in text) if word in prompt else -100
        for prompt, text, word in zip(prompts, completions, words, strict=True)
    ]
'''


def vowels(text: str) -> int:
    return sum(letter in "aeiou" for letter in text)


class World:
    """A sampler with a real tiny model, a Parquet file of prompts, and a function beside it."""

    def __init__(self, policy: Path, folder: Path) -> None:
        self.policy, self.folder = policy, folder
        self.living = LivingPolicy(policy, TOKENS)
        self.function = folder / "my_rewards.py"
        self.function.write_text(FUNCTION)
        rows = [
            {"question": f"the {word}?", "words": word, "level": i}
            for i, word in enumerate(["rain", "sun", "egg", "Rome", "tens", "hot"][:PROMPTS])
        ]
        datasets.Dataset.from_list(rows).to_parquet(folder / "prompts.parquet")

    def run(self, kind: str, recipe: str, *more: str) -> int:
        """The command's exit code; of options that are given twice, the last counts."""
        return main([
            kind, recipe, "--policy", str(self.policy), "--sampler", self.living.server.target,
            "--prompts", "prompts.parquet", "--prompt-key", "question",
            "--verifier", "my_rewards:vowels", "--max-tokens", str(TOKENS),
            "--samples-per-prompt", str(SAMPLES), "--output", "run", "--patience", "20",
            *more,
        ])  # fmt: skip

    def rft(self, *more: str) -> int:
        return self.run(
            "train", "rft", "--eval-prompts", "prompts.parquet", "--threshold", "0",
            "--eval-samples", "1", "--steps", "2", "--dtype", "float32", "--no-plots",
            "--keep-cut", "--checkpoint-every", "0", *more,
        )  # fmt: skip

    def scored(self) -> list[dict[str, Any]]:
        """Every completion that was drawn to train on, in any order."""
        groups = read_rows(self.folder / "run" / "scored.jsonl")[1:]
        return [sample for group in groups for sample in group["samples"]]


@pytest.fixture
def world(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return World(tiny, tmp_path)


def test_a_run_on_a_function_and_a_parquet_file(world: World) -> None:
    with world.living.server:
        assert world.rft() == 0
    found = world.scored()
    assert len(found) == PROMPTS * SAMPLES
    assert len({sample["reward"] for sample in found}) > 1
    for sample in found:
        assert sample["parts"] == {"my_rewards:vowels": vowels(sample["text"])}
        assert sample["reward"] == vowels(sample["text"])
    settings = (world.folder / "run" / "config.toml").read_text()
    assert 'verifier = ["my_rewards:vowels"]' in settings
    assert 'prompt_key = "question"' in settings
    assert json.loads((world.folder / "run" / "summary.json").read_text())["steps"] == 2


def test_a_run_does_not_go_on_with_another_function(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with world.living.server:
        with monkeypatch.context() as patch:
            die_after_groups(patch, 2)
            with pytest.raises(Killed):
                world.rft()
        had = world.scored()
        assert len(had) == 2 * SAMPLES
        world.function.write_text(FUNCTION.replace("-100", "-200"))
        capfd.readouterr()
        assert world.rft("--resume") == 2
        printed = " ".join(capfd.readouterr().err.split())
        assert "the reward function 'my_rewards:vowels' has changed since the run began" in printed
        assert world.rft("--resume", "--prompt-key", "words") == 2
        assert "was begun with prompt_key = 'question'" in capfd.readouterr().err
        assert world.scored() == had
        world.function.write_text(FUNCTION)
        assert world.rft("--resume") == 0
    assert world.scored()[: len(had)] == had
    tasks = [row["task"] for row in read_rows(world.folder / "run" / "scored.jsonl")[1:]]
    assert sorted(tasks) == list(range(PROMPTS))  # each once


def test_only_the_rank_that_scores_starts_a_function(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.function.write_text("open('started', 'w').close()\n" + FUNCTION)
    given = settings(
        policy=str(world.policy),
        prompts="prompts.parquet",
        eval_prompts="prompts.parquet",
        prompt_key="question",
        verifier=("my_rewards:vowels",),
    )
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert len(read_inputs(given).prompts) == PROMPTS
        assert (world.folder / "started").exists() == (rank == "0")


def test_pairs_by_a_function_and_a_service(
    world: World, service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda asked: ok({"reward": asked["row"]["level"] + len(asked["response"])})
    with world.living.server:
        pairs = ["data", "pairs", "--verifier", f"0.25*{service.url}"]
        assert world.run(*pairs, "--unfinished") == 0
        levels = {word: level for level, word in enumerate(["rain", "sun", "egg", "Rome", "tens"])}
        assert {asked["row"]["level"] for asked in service.asked} >= set(levels.values())
        for sample in world.scored():
            assert sample["parts"].keys() == {"my_rewards:vowels", service.url}
            plain, told = sample["parts"].values()
            assert sample["reward"] == plain + 0.25 * told
        rows = read_rows(world.folder / "run" / "pairs.jsonl")
        assert rows
        assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
        scored = world.folder / "run" / "scored.jsonl"
        scored.write_bytes(b"".join(scored.read_bytes().splitlines(keepends=True)[:-1]))
        world.function.write_text(FUNCTION + "\n")
        capfd.readouterr()
        assert world.run(*pairs, "--unfinished", "--resume") == 2
        assert "my_rewards:vowels has changed since the run in run began" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--verifier", "my_rewards:vowel"], 2, "'my_rewards' has no 'vowel'; did you mean 'vow"),
        (["--verifier", "none:f"], 2, "can't import 'none': ModuleNotFoundError"),
        (["--prompt-key", "questions"], 2, "questions: is missing; did you mean 'question'?"),
        (["--answer-key", "word"], 2, "line 1: word: is missing; did you mean 'words'?"),
        (["--verifier", "exact"], 2, "line 1: answer: is missing; the columns are words, level"),
        (["--verifier", "http://example.com/"], 2, "http is for this machine alone"),
        (["--eval-prompts", "no.csv"], 2, "can't read no.csv: No such file"),
        ([], 0, "prompts: 6 of prompts.parquet"),
        (["--prompts-limit", "2"], 0, "prompts: 2 of prompts.parquet"),
        (["--answer-key", "words", "--verifier", "exact"], 0, "prompts: 6 of"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(
    world: World, capfd: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    assert world.rft("--dry-run", "--sampler", "localhost:1", *more) == code
    printed = " ".join(capfd.readouterr().err.split())
    assert message in printed
    assert not (world.folder / "run").exists()
