"""One rank's part of a test of several processes: gradients, a step, weights, a resume."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tests.learner.support import all_samples, gradients, make_learner, settings, wild_groups
from torch.distributed.tensor import DTensor

from guerdon.trainer.rl.settings import GRPOSettings, OnlineDPOSettings, PPOSettings, RunSettings

CASES: dict[str, tuple[type[RunSettings], dict[str, Any]]] = {
    "head": (PPOSettings, {"value": "head", "entropy_coef": 0.01, "kl_in": "loss"}),
    "own": (PPOSettings, {"value": "own", "value_warmup": 1}),
    "lora": (GRPOSettings, {"lora_r": 4, "gradient_checkpointing": True}),
    "pairs": (OnlineDPOSettings, {"pick": "all"}),
    "equal": (GRPOSettings, {"weight_decay": 0.1}),
}


def result(folder: Path, case: str) -> dict[str, Any]:
    """What must be the same however many processes there are."""
    kind, values = CASES[case]
    run = settings(kind, micro_batch_tokens=40, lr=1e-3, max_grad_norm=100.0, **values)
    groups, more = wild_groups(5, 3, seed=1), wild_groups(4, 3, seed=2)
    if case == "equal":  # first for one process of two, then for both, there is nothing to learn
        for sample in [*all_samples(groups[:-1]), *all_samples(more)]:
            sample.reward = 1.0
    found: dict[str, Any] = {
        f"float{64 if exact else 32}": gradients(make_learner(folder, run, exact=exact), groups)
        for exact in (True, False)
    }
    learner = make_learner(folder, run, exact=True)
    if case == "lora":  # its B begins at 0, and A's gradient with it
        learner.step(groups)
    found["metrics"] = [learner.step(groups)]
    state = deepcopy(learner.state())  # as a file would hold it
    found["metrics"].append(learner.step(more))
    found["divergence"] = learner.divergence(more)
    prompts = [group.task.prompt_ids_P for group in groups]
    weights = learner.weights("float32", [ids for ids in prompts if len(ids) > 1])
    found["tensors"] = dict(zip([s.name for s in weights.specs], weights.tensors(), strict=True))
    found["canaries"] = [canary.logprobs for canary in weights.canaries]
    resumed = make_learner(folder, run, exact=True)
    resumed.load_state(resumed.ranks.from_main(state))  # as from a file that every rank reads
    found["resumed"] = resumed.step(more)
    found["main"] = learner.ranks.main
    found["packed"] = learner.module.packed
    found["sharded"] = sum(isinstance(p, DTensor) for p in learner.model.parameters())
    found["parameters"] = len(list(learner.model.parameters()))
    found["wrapper"] = type(learner.model).__name__
    return found


def write_results(folder: Path, out: Path) -> int:
    """Every case's result, written by the first rank; 0."""
    made = {case: result(folder, case) for case in CASES}
    if made["head"]["main"]:
        torch.save(made, out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0
