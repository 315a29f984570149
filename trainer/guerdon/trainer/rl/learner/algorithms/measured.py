"""Checks, measures and groups of a step's samples, which algorithms share."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.trainer.common.measuring.kl_estimate import kl_estimate
from guerdon.trainer.common.services.types import Group, PromptRow, Task
from guerdon.trainer.rl.learner.advantages import require_finite
from guerdon.trainer.rl.learner.algorithms.base import Algorithm, Reduce, StepBatch
from guerdon.trainer.rl.learner.losses import importance, off_policy_sums, sequence_kl


def token_mask(batch: StepBatch) -> Tensor:
    """The tokens that may be learnt from. bool [N]."""
    if batch.mask_N is None:
        return torch.ones(len(batch.behaviour_N), dtype=torch.bool)
    return batch.mask_N


def regrouped(batch: StepBatch) -> dict[int, Group]:
    """The samples of a step by their prompt's number in `groups_S`."""
    found: dict[int, Group] = {}
    for sample, place in zip(batch.samples, batch.groups_S.tolist(), strict=True):
        if place not in found:
            task = Task(sample.task_uid, PromptRow(0, ()), sample.prompt_ids_P)
            found[place] = Group(task, [])
        found[place].samples.append(sample)
    return found


def check(batch: StepBatch, mask_N: Tensor, algorithm: Algorithm) -> None:
    """Nothing is learnt from a number that isn't one.

    Raises:
        ValueError: a log-probability or value is not finite.
    """
    given = {
        "behaviour log-probability": batch.behaviour_N,
        "proximal log-probability": batch.proximal_N,
        "reference log-probability": batch.reference_N,
        "value": batch.values_N,
    }
    assert batch.reference_N is not None or not algorithm.needs_reference
    assert batch.values_N is not None or algorithm.value_model is None
    assert int(batch.lengths_S.sum()) == len(mask_N)
    for what, tensor_N in given.items():
        if tensor_N is not None:
            assert len(tensor_N) == len(mask_N), what
            require_finite(what, torch.where(mask_N, tensor_N, torch.zeros_like(tensor_N)))


def off_policy(batch: StepBatch, mask_N: Tensor, cap: float, reduce: Reduce) -> dict[str, float]:
    """How far the sampler's policy is from the trainer's, over all processes."""
    sums, largest = off_policy_sums(batch.proximal_N, batch.behaviour_N, mask_N, cap=cap)
    over_all = dict(zip(sums, reduce.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
    tokens = max(over_all["tokens"], 1.0)
    squares = over_all["weight_squared"]
    return {
        "mismatch_kl": over_all["k3"] / tokens,
        "weight": over_all["weight"] / tokens,
        "weight_max": reduce.max(largest.reshape(1)).item(),
        "capped_fraction": over_all["capped"] / tokens,
        "ess": over_all["weight"] ** 2 / (tokens * squares) if squares else 1.0,
    }


def divergence(
    batch: StepBatch, reference_N: Tensor, mask_N: Tensor, reduce: Reduce
) -> tuple[dict[str, float], int]:
    """KL(π_prox ‖ π_ref) by completion and by token; and over how many completions.

    Stale tokens were drawn by another policy, so each is weighed by w = π_prox/π_μ.
    """
    proximal_N, reference_N = batch.proximal_N.double(), reference_N.double()
    behaviour_N = batch.behaviour_N.double()
    kl_S = sequence_kl(proximal_N, reference_N, behaviour_N, mask_N, batch.lengths_S)
    k3_N = kl_estimate(proximal_N, reference_N, "k3") * importance(proximal_N, behaviour_N)
    local = [kl_S.sum(), len(kl_S), k3_N[mask_N].sum(), mask_N.sum()]
    kl, samples, k3, tokens = reduce.sum(torch.tensor(local, dtype=torch.float64)).tolist()
    return {"kl": kl / max(samples, 1.0), "kl_token": k3 / max(tokens, 1.0)}, int(samples)
