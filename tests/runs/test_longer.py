"""Runs that go on after their end, and what all recipes together write."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runs.processes import Service
from tests.runs.whole import STEPS, Recipe, finished

from guerdon.trainer.common.measuring.samples import before_and_after
from guerdon.trainer.rl.report.metrics import KEYS
from guerdon.trainer.rl.report.summary import KEYS as SUMMARY_KEYS

pytestmark = pytest.mark.slow


def test_a_run_that_ended_goes_on_with_more_steps(
    policy: Path, sampler: Service, rewards: Service, tmp_path: Path
) -> None:
    recipe = Recipe(policy, sampler, rewards, "--deterministic")
    first = finished(recipe, tmp_path)
    first.check_books()
    weights = (first.path / "final" / "model.safetensors").read_bytes()
    again = finished(recipe, tmp_path, "--resume")  # shows what is there
    assert (again.metrics, again.samples) == (first.metrics, first.samples)
    run = finished(recipe, tmp_path, "--resume", "--steps", str(STEPS + 2))
    assert [row["step"] for row in run.steps] == list(range(1, STEPS + 3))
    assert run.metrics[: len(first.metrics)] == first.metrics
    seconds = [row["seconds"] for row in run.metrics]
    assert seconds == sorted(seconds)
    assert run.summary["steps"] == run.summary["after"]["step"] == STEPS + 2
    assert {after["step"] for _, after in before_and_after(run.path / "samples.jsonl")} == {
        STEPS + 2
    }
    tasks = {(row["task"], row["step"]) for row in run.samples if row["kind"] == "train"}
    assert sorted(task for task, _ in tasks) == list(range(2 * STEPS + 4))
    assert (run.path / "final" / "model.safetensors").read_bytes() != weights


ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "ppo": [
        "--value",
        "own",
        "--reward-scale",
        "running",
        "--dual-clip",
        "3",
        "--verifier",
        "0.1*length:3",
        "--kl-in",
        "reward",
    ],
    "grpo": ["--verifier", "0.1*my_rewards:brief"],
    "online-rft": ["--threshold", "-100"],
    "online-dpo": ["--unfinished"],
}


def test_every_documented_metric_is_written_by_some_recipe(
    policy: Path,
    sampler: Service,
    rewards: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them with a reward function of the user's own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples" / "rewards"), prepend=":")
    found: set[str] = set()
    for algorithm, flags in FLAGS.items():
        folder = tmp_path / algorithm
        folder.mkdir()
        heldout = ["--heldout-reward", f"127.0.0.1:{rewards.port}/m"]
        recipe = Recipe(policy, sampler, rewards, *flags, *heldout, algorithm=algorithm)
        run = finished(recipe, folder)
        run.check_books()
        found |= {key for row in run.metrics for key in row}
        assert set(SUMMARY_KEYS) - run.summary.keys() == {"kept", "kept_prompts"}
        assert run.summary.keys() <= set(SUMMARY_KEYS)
        held = [run.summary[when]["heldout_reward"]["mean"] for when in ("before", "after")]
        named = [
            when["reward/m"]["mean"]
            for when in map(run.summary.get, ("before", "after"))
            if when and "reward/m" in when
        ]
        if algorithm == "ppo":  # two rewards, of which one is the held-out one
            assert held == pytest.approx(named, abs=1e-4)
    documented = {
        key for name, group in KEYS.items() if name != "fine-tuning (RFT)" for key in group
    }
    templates = {key for key in documented if key.endswith("/NAME")}
    for template in templates:
        assert any(key.startswith(template.removesuffix("NAME")) for key in found), template
    assert documented - templates - found == {"memory"}  # of an accelerator
