"""Which completions RFT and Online RFT train on. Pure.

Rejection sampling keeps what a rule accepts and trains on nothing else (RFT: Yuan et al.
2023, arXiv:2308.01825; Online RFT: Shao et al. 2024, arXiv:2402.03300, sec. 5.2.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from guerdon.trainer.common.services.types import Group, Sample
from guerdon.trainer.rl.settings import KeepSettings, RunSettings


def keep(groups: Iterable[Group], settings: KeepSettings, rng: np.random.Generator) -> list[Sample]:
    """The samples that are trained on, in the order in which they were given.

    Prompts are told apart by their tokens, so two tasks of the same text are one prompt.
    Completions that a reward model refused are never kept. Of the others, cut ones go first: they
    have no ending token, so what is trained on them forgets to end (and every way to ramble on is
    another completion, so they outnumber the plain answer once copies are gone). Then equal
    completions go (they would fill a prompt's places with copies of one answer), then the rule
    decides, then chance thins out what is over `max_per_prompt`.

    Args:
        groups: scored.
        settings: the rule.
        rng: draws for `max_per_prompt`, and for nothing else.

    Raises:
        ValueError: a sample has no finite reward.
    """
    prompts: dict[bytes, list[Sample]] = {}
    order: dict[int, int] = {}
    for group in groups:
        for sample in group.samples:
            order[id(sample)] = len(order)
            prompts.setdefault(_bytes(sample.prompt_ids_P), []).append(sample)
    kept: list[Sample] = []
    for samples in prompts.values():
        kept += _of_one_prompt(samples, settings, rng)
    return sorted(kept, key=lambda sample: order[id(sample)])


def earned(sample: Sample, settings: RunSettings) -> float:
    """The reward by which a sample is judged: less the penalty when it was cut.

    Raises:
        ValueError: it is not a finite number, as that of a sample without scores.
    """
    reward = sample.reward - (0.0 if sample.finished else settings.missing_eos_penalty)
    if not math.isfinite(reward):
        raise ValueError(f"the reward of task {sample.task_uid} is {sample.reward}")
    return reward


def _of_one_prompt(
    samples: Sequence[Sample], settings: KeepSettings, rng: np.random.Generator
) -> list[Sample]:
    rewards = {id(sample): earned(sample, settings) for sample in samples}
    samples = [sample for sample in samples if not sample.refused]
    if not settings.keep_cut:
        samples = [sample for sample in samples if sample.finished]
    if settings.deduplicate:
        samples = _without_copies(samples)
    if settings.keep == "threshold":
        kept = [sample for sample in samples if rewards[id(sample)] >= settings.threshold]
    else:  # sorted() is stable: of equals, those drawn first
        kept = sorted(samples, key=lambda sample: -rewards[id(sample)])[: settings.top]
    most = settings.max_per_prompt
    if most and len(kept) > most:
        kept = [kept[place] for place in rng.choice(len(kept), most, replace=False)]
    return kept


def _without_copies(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each group of samples with the same tokens."""
    first: dict[bytes, Sample] = {}
    for sample in samples:
        first.setdefault(_bytes(sample.response_ids_T), sample)
    return list(first.values())


def _bytes(ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> bytes:
    return np.ascontiguousarray(ids, dtype=np.int32).tobytes()
