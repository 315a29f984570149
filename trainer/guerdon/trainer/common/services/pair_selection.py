"""Which answers of a prompt make pairs: `guerdon data pairs` and Online DPO. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from operator import attrgetter

import numpy as np

from guerdon.trainer.common.services.settings import PickSettings
from guerdon.trainer.common.services.types import Group, Sample

Earned = Callable[[Sample], float]


@dataclass(slots=True)
class Picked:
    """Pairs (the better answer first), and what made none."""

    pairs: list[tuple[Group, Sample, Sample]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Answers that are `refused`, `empty`, `unfinished` or `copies`; prompts with `no_pair`."""


def pick_pairs(
    groups: Sequence[Group], rule: PickSettings, earned: Earned = attrgetter("reward")
) -> Picked:
    """The pairs of all groups; the same whenever it is asked, by the seed.

    Args:
        groups: scored.
        rule: what makes a pair.
        earned: the reward by which an answer is judged.
    """
    picked = Picked()
    for group in groups:
        rng = np.random.default_rng([rule.seed, group.task.uid])
        rewards = {id(sample): earned(sample) for sample in group.samples}
        usable = list(_usable(group, rewards, rule, picked.left_out))
        found = _of_one_prompt(usable, rewards, rule, rng)
        picked.pairs += [(group, better, worse) for better, worse in found]
        picked.left_out["no_pair"] += not found
    return picked


def _usable(
    group: Group, rewards: Mapping[int, float], rule: PickSettings, left_out: Counter[str]
) -> Iterator[Sample]:
    """Answers with text, each once, best first; of equal rewards the first that was drawn."""
    known: set[str] = set()
    for sample in sorted(group.samples, key=lambda sample: (-rewards[id(sample)], sample.index)):
        if sample.refused:
            left_out["refused"] += 1
        elif not sample.text.strip():
            left_out["empty"] += 1
        elif not sample.finished and not rule.unfinished:
            left_out["unfinished"] += 1
        elif sample.text in known:
            left_out["copies"] += 1
        else:
            known.add(sample.text)
            yield sample


def _of_one_prompt(
    usable: Sequence[Sample],
    rewards: Mapping[int, float],
    rule: PickSettings,
    rng: np.random.Generator,
) -> list[tuple[Sample, Sample]]:
    def margin(better: Sample, worse: Sample) -> float:
        return rewards[id(better)] - rewards[id(worse)]

    pairs = [pair for pair in combinations(usable, 2) if margin(*pair) > rule.min_margin]
    if rule.pick == "all":
        pairs.sort(key=lambda pair: -margin(*pair))  # stable: widest first
        return pairs[: rule.max_per_prompt or None]
    of_best = [pair for pair in pairs if pair[0] is usable[0]]
    if not of_best:
        return []
    return [of_best[-1] if rule.pick == "extremes" else of_best[rng.integers(len(of_best))]]
