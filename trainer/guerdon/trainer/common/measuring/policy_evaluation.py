"""What held-out prompts say of a policy, with the noise. Pure.

before = evaluate(0, groups, kl=…, heldout=…)
…
after = evaluate(20, groups, kl=…, heldout=…)
compare(before, after)["reward"].rose
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.monitors import distinct_n, repetition
from guerdon.trainer.common.measuring.statistics import Estimate, estimate, paired, share
from guerdon.trainer.common.services.types import Group

SHARES = frozenset({"finished", "refusal", "harmful", "win_rate"})
"""Measures that are from 0 to 1, and may well be 0 or 1 at all prompts."""


def mean_over_prompts(name: str, values: Sequence[float], per_prompt: float) -> Estimate:
    """The mean of a measure over prompts, with an interval that suits it.

    Args:
        name: of the measure.
        values: one for each prompt.
        per_prompt: completions of a prompt.
    """
    return share(values, per_prompt=per_prompt) if name in SHARES else estimate(values)


PerSample = Sequence[Sequence[float]]
"""A number for each sample of each group, in the groups' order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured of a policy on held-out prompts."""

    step: int
    """Published updates of the policy."""
    completions: int
    prompts: dict[str, dict[int, float]]
    """Each prompt's mean over its completions, by what was measured and the row's index:
    `reward`, `reward/NAME`, `length`, `finished`, `refused`, `repetition`, perhaps `kl` and
    `heldout_reward`."""
    distinct_1: float
    distinct_2: float
    """distinct-2 over all completions together."""

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Each mean over prompts, with its interval."""
        each = self.completions / len(self.prompts["reward"])
        return {
            name: mean_over_prompts(name, list(means.values()), each)
            for name, means in self.prompts.items()
        }

    @property
    def reward(self) -> Estimate:
        """The mean reward."""
        return self.estimates["reward"]

    def metrics(self) -> dict[str, float]:
        """A line for metrics.jsonl; the keys are in `metrics.KEYS`."""
        row: dict[str, float] = {"step": self.step}
        for name, found in self.estimates.items():
            row[f"eval/{name}"] = found.mean
            if name in ("reward", "heldout_reward", "kl", "length") and found.se is not None:
                row[f"eval/{name}_se"] = found.se
        return row | {
            "eval/distinct_1": self.distinct_1,
            "eval/distinct_2": self.distinct_2,
            "eval/prompts": len(self.prompts["reward"]),
            "eval/completions": self.completions,
        }

    def summary(self) -> dict[str, Any]:
        """The evaluation for summary.json."""
        return {
            "step": self.step,
            "prompts": len(self.prompts["reward"]),
            "completions": self.completions,
            **{name: found.as_dict() for name, found in self.estimates.items()},
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
        }

    def tree(self) -> dict[str, Any]:
        """The evaluation as a tree for `Checkpoints.save`."""
        return {
            "step": self.step,
            "completions": self.completions,
            "prompts": self.prompts,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Evaluation:
        """What `tree` was made of."""
        return cls(**tree)


def evaluate(
    step: int,
    groups: Sequence[Group],
    *,
    kl: PerSample | None = None,
    heldout: PerSample | None = None,
    more: Mapping[str, PerSample] | None = None,
) -> Evaluation:
    """Measure scored completions of held-out prompts.

    Args:
        step: published updates of the policy that drew them.
        groups: one for each prompt, scored, in any order.
        kl: nats per completion of KL(π_θ ‖ π_ref): Σ_t of an estimator of each token's.
        heldout: score of the held-out reward model.
        more: what else is to be averaged, by its name.

    Raises:
        ValueError: there are none, or a number is not finite.
    """
    columns: dict[str, PerSample] = {
        "reward": [[sample.reward for sample in group.samples] for group in groups],
        "length": [[sample.tokens for sample in group.samples] for group in groups],
        "finished": [[float(sample.finished) for sample in group.samples] for group in groups],
        "refused": [[float(sample.refused) for sample in group.samples] for group in groups],
        "repetition": [[repetition(s.response_ids_T) for s in group.samples] for group in groups],
    }
    names = groups[0].samples[0].parts if groups else {}
    for name in names if len(names) > 1 else ():
        columns[f"reward/{name}"] = [[s.parts[name] for s in group.samples] for group in groups]
    columns |= {"kl": kl} if kl is not None else {}
    columns |= {"heldout_reward": heldout} if heldout is not None else {}
    columns |= more or {}
    ids = [sample.response_ids_T for group in groups for sample in group.samples]
    return Evaluation(
        step=step,
        completions=len(ids),
        prompts={name: _means(groups, values) for name, values in columns.items()},
        distinct_1=distinct_n(ids, 1),
        distinct_2=distinct_n(ids, 2),
    )


def compare(before: Evaluation, after: Evaluation) -> dict[str, Estimate]:
    """Each mean difference, after − before, over the prompts that both have."""
    names = [name for name in before.prompts if name in after.prompts]
    return {name: paired(before.prompts[name], after.prompts[name]) for name in names}


def _means(groups: Sequence[Group], values: PerSample) -> dict[int, float]:
    found = {}
    for group, numbers in zip(groups, values, strict=True):
        mean = float(np.mean(numbers))
        if len(numbers) != len(group.samples) or not np.isfinite(mean):
            raise ValueError(f"prompt {group.task.row.index} has the numbers {list(numbers)}")
        found[group.task.row.index] = mean
    return dict(sorted(found.items()))
