"""Which answers of a prompt make pairs. Pure functions of scored groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from guerdon.trainer.collect.settings import PairsSettings
from guerdon.trainer.rl.types import Group, Sample


@dataclass(slots=True)
class Picked:
    """Pairs (the better answer first), and what made none."""

    pairs: list[tuple[Group, Sample, Sample]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Answers that are `empty`, `unfinished` or `copies`; prompts with `no_pair`."""


def pick_pairs(groups: Sequence[Group], settings: PairsSettings) -> Picked:
    """The pairs of all groups; the same whenever it is asked, by the seed."""
    picked = Picked()
    for group in groups:
        rng = np.random.default_rng([settings.seed, group.task.uid])
        usable = list(_usable(group, settings, picked.left_out))
        found = _of_one_prompt(usable, settings, rng)
        picked.pairs += [(group, better, worse) for better, worse in found]
        picked.left_out["no_pair"] += not found
    return picked


def _usable(group: Group, settings: PairsSettings, left_out: Counter[str]) -> Iterator[Sample]:
    """Answers with text, each once, best first; of equal rewards the first that was drawn."""
    known: set[str] = set()
    for sample in sorted(group.samples, key=lambda sample: (-sample.reward, sample.index)):
        if not sample.text.strip():
            left_out["empty"] += 1
        elif not sample.finished and not settings.unfinished:
            left_out["unfinished"] += 1
        elif sample.text in known:
            left_out["copies"] += 1
        else:
            known.add(sample.text)
            yield sample


def _of_one_prompt(
    usable: Sequence[Sample], settings: PairsSettings, rng: np.random.Generator
) -> list[tuple[Sample, Sample]]:
    pairs = [
        (better, worse)
        for better, worse in combinations(usable, 2)
        if better.reward - worse.reward > settings.min_margin
    ]
    if settings.pick == "all":
        pairs.sort(key=lambda pair: pair[1].reward - pair[0].reward)  # stable: widest first
        return pairs[: settings.max_per_prompt or None]
    of_best = [pair for pair in pairs if pair[0] is usable[0]]
    if not of_best:
        return []
    return [of_best[-1] if settings.pick == "extremes" else of_best[rng.integers(len(of_best))]]
