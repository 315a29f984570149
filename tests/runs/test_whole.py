"""What every recipe's run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.fine_tune.support import log_ratio
from tests.runs.processes import Service
from tests.runs.whole import STEPS, Finished, Recipe, finished
from tests.support.metric_keys import describe
from tests.support.server import running_server
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.client import Item, RewardClient, TokenIds
from guerdon.models import Manifest, weights_hash
from guerdon.trainer.rl.report.metrics import KEYS

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
    assert names >= {
        "config.toml",
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
        "plots",
        "checkpoints",
        "final",
    }
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
    run = finished(recipe, tmp_path)
    keys = check(run)
    assert (run.path / "reward").exists() == (algorithm == "online-dpo")
    if algorithm == "ppo":
        documented = {key for group in KEYS.values() for key in group}
        assert documented - keys <= ELSEWHERE
    if algorithm == "online-dpo":
        check_implied(run.path, policy, beta=0.1)


def check_implied(run: Path, policy: Path, beta: float) -> None:
    """The reward that the policy implies is served as it is computed directly."""
    manifest = Manifest.read(run / "reward")
    assert manifest is not None
    assert (manifest.policy, manifest.reference_hash) == ("../final", weights_hash(policy))
    assert manifest.training["rewards"] == {"m": 1.0}
    with (
        running_server({"mine": run / "reward"}, dtype="float32") as server,
        RewardClient(server.address) as client,
    ):
        item = Item(TokenIds([5, 6, 7, 8]), [TokenIds([9, 10, 11]), TokenIds([12, 13])])
        found = client.score("mine", [item]).scores[0]
    first, last = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (policy, run / "final")
    )
    wanted = [
        beta * log_ratio(last, first, [5, 6, 7, 8], ids).sum().item()
        for ids in ([9, 10, 11], [12, 13])
    ]
    assert max(map(abs, wanted)) > 1e-3, "a policy that learned nothing would hide faults"
    assert found == pytest.approx(wanted, abs=1e-4)
