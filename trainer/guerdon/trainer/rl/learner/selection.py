"""Which of a step's completions are trained on, where that is not all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guerdon.trainer.common.pair_selection import pick_pairs
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.learner.rejection import earned, keep
from guerdon.trainer.rl.settings import KeepSettings, OnlineDPOSettings, RunSettings


def kept_of(
    samples: Sequence[Sample], places: Sequence[int], settings: RunSettings, step: int
) -> Tensor | None:
    """Online RFT: whether each sample is kept, bool [S]; None for other algorithms.

    Args:
        samples: of this process.
        places: of each one's group among all of the step's.
        settings: of the run.
        step: updates so far.
    """
    if not isinstance(settings, KeepSettings):
        return None
    kept: set[int] = set()
    for place, group in _groups(samples, places).items():
        rng = np.random.default_rng([settings.seed, step, place])  # whatever the ranks
        kept |= {id(sample) for sample in keep([group], settings, rng)}
    return torch.tensor([id(sample) in kept for sample in samples], dtype=torch.bool)


def pairs_of(
    samples: Sequence[Sample], places: Sequence[int], settings: RunSettings
) -> Tensor | None:
    """Online DPO: the preference pairs, int64 [K, 2]; None for other algorithms.

    Args:
        samples: of this process.
        places: of each one's group among all of the step's.
        settings: of the run.
    """
    if not isinstance(settings, OnlineDPOSettings):
        return None
    at = {id(sample): place for place, sample in enumerate(samples)}
    groups = list(_groups(samples, places).values())
    picked = pick_pairs(groups, settings, lambda sample: earned(sample, settings))
    pairs = [[at[id(better)], at[id(worse)]] for _, better, worse in picked.pairs]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _groups(samples: Sequence[Sample], places: Sequence[int]) -> dict[int, Group]:
    """The samples by their groups' places."""
    found: dict[int, Group] = {}
    for sample, place in zip(samples, places, strict=True):
        if place not in found:
            task = Task(sample.task_uid, PromptRow(0, ()), sample.prompt_ids_P)
            found[place] = Group(task, [])
        found[place].samples.append(sample)
    return found
