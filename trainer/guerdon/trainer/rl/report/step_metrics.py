"""A step's line of metrics, from what the rollouts, the learner and the clock say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from guerdon.trainer.common.measuring.monitors import distinct_n, repetition
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.common.services.utilisation import RolloutStats


def group_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """What the step's completions and their rewards say.

    Args:
        groups: scored; all that the step trains on.
        version: of the weights that train on them.
    """
    samples = [sample for group in groups for sample in group.samples]
    rewards = np.array([sample.reward for sample in samples])
    means = np.array([group.rewards_G.mean() for group in groups])
    behind = version - np.concatenate([sample.versions_T for sample in samples])
    ids = [sample.response_ids_T for sample in samples]
    row = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "reward_group_std": float(np.mean([group.rewards_G.std() for group in groups])),
        "equal_rewards": float(np.mean([np.ptp(group.rewards_G) == 0 for group in groups])),
        "prompts": len(groups),
        "completions": len(samples),
        "tokens": sum(sample.tokens for sample in samples),
        "length": float(np.mean([sample.tokens for sample in samples])),
        "finished": float(np.mean([sample.finished for sample in samples])),
        "refused": float(np.mean([sample.refused for sample in samples])),
        "distinct_1": distinct_n(ids, 1),
        "distinct_2": distinct_n(ids, 2),
        "repetition": float(np.mean([repetition(sample) for sample in ids])),
        "staleness": float(behind.mean()),
        "staleness_max": int(behind.max()),
    }
    if len(groups) > 1:
        row["reward_se"] = float(means.std(ddof=1) / np.sqrt(len(means)))
    names = list(samples[0].parts)
    for name in names if len(names) > 1 else ():
        row[f"reward/{name}"] = float(np.mean([sample.parts[name] for sample in samples]))
    return row


def speed_metrics(
    tokens: int, spent: Mapping[str, float], seconds: float, stats: RolloutStats
) -> dict[str, float]:
    """The metrics of a step's time.

    Args:
        tokens: response tokens that were trained on.
        spent: seconds by phase.
        seconds: of the whole step.
        stats: of the step alone, but for the faults.
    """
    return {
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "seconds/step": seconds,
        **{f"seconds/{name}": value for name, value in spent.items()},
        "seconds/sampling": stats.sampling_seconds,
        "seconds/scoring": stats.scoring_seconds,
        "idle/sampler": stats.sampling_idle,
        "idle/rewards": stats.scoring_idle,
        "idle/learner": stats.learning_idle,
        "expired_groups": stats.expired_groups,
    }
