"""Whole runs of `guerdon train`, and what must be true of any that ended."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.runs.processes import Service, train
from tests.support.command import read_rows
from tests.support.forked import Child

from guerdon.client import Item, RewardClient

STEPS, PROMPTS, SAMPLES = 6, 2, 2
"""So many steps of so many prompts are one pass over all of them."""
_TIMES = ("seconds", "idle/", "tokens_per_second", "faults", "memory")


class Recipe:
    """How a run is started.

    Args:
        policy: its folder.
        sampler: of it.
        rewards: a server with a model `m`.
        more: flags.
        algorithm: the command.
    """

    def __init__(
        self, policy: Path, sampler: Service, rewards: Service, *more: str, algorithm: str = "ppo"
    ) -> None:
        self.policy, self.sampler, self.rewards = policy, sampler, rewards
        self.more, self.algorithm = more, algorithm

    def arguments(self, folder: Path) -> list[str]:
        """Of `guerdon train`; the prompts are written where they are not yet."""
        files = {"prompts": STEPS * PROMPTS, "eval-prompts": 2}
        flags = []
        for name, count in files.items():
            path = folder / f"{name}.jsonl"
            rows = [json.dumps({"prompt": f"What is {name} {i}?"}) for i in range(count)]
            path.write_text("\n".join(rows) + "\n")
            flags += [f"--{name}", str(path)]
        return [
            self.algorithm,
            "--policy",
            str(self.policy),
            *flags,
            "--sampler",
            f"127.0.0.1:{self.sampler.port}",
            "--reward",
            f"127.0.0.1:{self.rewards.port}/m",
            "--output",
            str(folder / "run"),
            "--steps",
            str(STEPS),
            "--prompts-per-step",
            str(PROMPTS),
            "--samples-per-prompt",
            str(SAMPLES),
            "--max-tokens",
            "5",
            "--eval-samples",
            "1",
            "--eval-every",
            "0",
            "--checkpoint-every",
            "2",
            "--sample-rows",
            "100",
            "--dtype",
            "float32",
            "--lr",
            "1e-3",
            "--patience",
            "60",
            "--no-plots",
            *self.more,
        ]

    def start(self, folder: Path, *more: str, dies: str = "") -> Child:
        """Begin a run, or go on with it; it may end by SIGKILL."""
        return Child(folder / "log", train, [*self.arguments(folder), *more], dies)


class Finished:
    """A run that ended well, whatever came between.

    Args:
        folder: in which it has its own.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run"
        self.summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        self.metrics = read_rows(self.path / "metrics.jsonl")
        self.samples = read_rows(self.path / "samples.jsonl")

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of steps."""
        return [row for row in self.metrics if "reward" in row]

    def numbers(self) -> list[dict[str, Any]]:
        """All lines, but for what tells of time."""
        return [
            {key: value for key, value in row.items() if not key.startswith(_TIMES)}
            for row in self.metrics
        ]

    def check_books(self) -> None:
        """Each step is there once; each prompt was trained on once, with all its completions."""
        assert [row["step"] for row in self.steps] == list(range(1, STEPS + 1))
        trained = [row for row in self.samples if row["kind"] == "train"]
        pairs = Counter((row["prompt_index"], row["sample"]) for row in trained)
        assert pairs == Counter({(p, s): 1 for p in range(STEPS * PROMPTS) for s in range(SAMPLES)})

    def check_rewards(self, rewards: Service) -> None:
        """The reward server says of every completion what the run says it did."""
        with RewardClient(f"127.0.0.1:{rewards.port}") as client:
            items = [Item(row["prompt"], [row["response"]]) for row in self.samples]
            found = client.score("m", items).scores
        for row, (again,) in zip(self.samples, found, strict=True):
            assert abs(again - row["reward"]) < 1e-4


def finished(recipe: Recipe, folder: Path, *more: str) -> Finished:
    """Run it, or go on with it, to its end."""
    child = recipe.start(folder, *more)
    assert child.wait() == 0, child.log()
    return Finished(folder)
