"""What a process does that goes on from a learner's state on disk, as `--resume` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.learner.support import make_learner, settings, weights, wild_groups

from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import GRPOSettings, OnlineDPOSettings, PPOSettings, RunSettings
from guerdon.trainer.rl.state_files import read_tree

CASES: dict[str, tuple[type[RunSettings], dict[str, Any]]] = {
    "ppo": (PPOSettings, {"kl_target": 1.0, "minibatches": 2, "reward_scale": "running"}),
    "warming": (PPOSettings, {"value": "own", "value_warmup": 2, "lr_schedule": "cosine"}),
    "lora": (GRPOSettings, {"lora_r": 4, "epochs": 2, "weight_decay": 0.1, "warmup_steps": 3}),
    "pairs": (OnlineDPOSettings, {"pick": "random", "unfinished": True}),
}


def new_learner(checkpoint: Path, case: str) -> Learner:
    """As it begins."""
    kind, values = CASES[case]
    run = settings(kind, lr=1e-3, micro_batch_tokens=64, steps=6, **values)
    return make_learner(checkpoint, run)


def go_on(learner: Learner, steps: range) -> dict[str, Any]:
    """Its metrics, and all that it has in the end."""
    metrics = [learner.step(wild_groups(4, 3, seed=step)) for step in steps]
    algorithm, rng = learner.algorithm.state_dict(), torch.rand(4)
    return {"metrics": metrics, "weights": weights(learner), "algorithm": algorithm, "rng": rng}


def write_resumed(checkpoint: Path, folder: Path, threads: int) -> int:
    """Go on with every case of a folder, beside which its result is written; 0."""
    torch.set_num_threads(threads)
    for name in CASES:
        made = new_learner(checkpoint, name)
        made.load_state(read_tree(folder / name))
        torch.save(go_on(made, range(made.step_count, 4)), folder / f"{name}.pt")
    return 0
