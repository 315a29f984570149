"""What every recipe's run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runs.processes import Service
from tests.runs.whole import STEPS, Finished, Recipe, finished
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.trainer.rl.metrics import KEYS, describe

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "accepted", "reward_scale", "kl", "kl_token", "kl_loss", "kl_coef", "dual_clip_fraction",
    "reward/NAME", "eval/reward/NAME", "eval/heldout_reward", "eval/heldout_reward_se", "memory",
    "token_accuracy", "sft_tokens", "epoch", "seconds/NAME", "pairs", "paired", "pair_margin",
    "pair_longer", "accuracy", "margin", "chosen_reward", "rejected_reward",
}  # fmt: skip
"""Keys that a plain run of PPO need not have."""


def check(run: Finished) -> set[str]:
    """What holds for all; the keys of its metrics."""
    run.check_books()
    names = {path.name for path in run.path.iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "samples.jsonl", "summary.json", "plots",
                     "checkpoints", "final"}  # fmt: skip
    assert list((run.path / "plots").glob("*.png"))
    model = AutoModelForCausalLM.from_pretrained(run.path / "final")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "final")
    assert model.config.vocab_size >= len(tokenizer) > 0
    found = run.summary
    assert found["steps"] == STEPS
    for when in ("before", "after", "difference"):
        assert found[when]["reward"].keys() >= {"mean", "se", "low", "high"}
    assert found["after"]["kl"]["mean"] != 0.0
    assert found.keys() >= {"kl", "tokens", "seconds", "faults"}
    keys = {key for row in run.metrics for key in row}
    assert {key for key in keys if describe(key) is None} == set()
    return keys


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "online-rft", "online-dpo"])
def test_a_run_leaves_what_it_says(
    algorithm: str, policy: Path, sampler: Service, rewards: Service, tmp_path: Path
) -> None:
    more = ["--plots"]
    if algorithm == "online-rft":
        more += ["--threshold", "-100", "--keep-cut"]
    if algorithm == "online-dpo":
        more += ["--unfinished", "--missing-eos-penalty", "0.1"]
    recipe = Recipe(policy, sampler, rewards, *more, algorithm=algorithm)
    keys = check(finished(recipe, tmp_path))
    if algorithm == "ppo":
        documented = {key for group in KEYS.values() for key in group}
        assert documented - keys <= ELSEWHERE
