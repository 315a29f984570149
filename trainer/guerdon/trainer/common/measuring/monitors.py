"""Signs that a policy games its reward. Pure functions of tokens and of evaluations.

Reward models are proxies: past some point a policy makes the proxy rise by what people don't
want (Gao et al. 2022, arXiv:2210.10760). It shows in the lengths, in repetition, and in a second
reward model that training never sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from guerdon.trainer.common.measuring.statistics import Estimate, paired

if TYPE_CHECKING:
    from guerdon.trainer.common.measuring.policy_evaluation import Evaluation

LONGER = 1.5
"""Times the first length: from here on a growth beyond the noise is warned of."""
REPEATED = 0.1
"""Rise of the repeated share: from here on a growth beyond the noise is warned of."""
DISTINCT = 0.5
"""Times the first distinct-2: below it is warned of."""

MISMATCH = 0.02
"""Nats a token: bfloat16 on both sides makes 0.002."""


def ngrams(ids_T: Sequence[int] | np.ndarray[Any, Any], n: int) -> list[tuple[int, ...]]:
    """The n-grams of a sequence, in order; none when it is shorter than n."""
    tokens = [int(token) for token in ids_T]
    if n == 2:
        return list(pairwise(tokens))
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct_n(completions: Sequence[Sequence[int] | np.ndarray[Any, Any]], n: int) -> float:
    """Different n-grams over all n-grams of the completions together (Li et al. 2016).

    It falls as there is more text: compare only equally many completions of like lengths.
    1 when there is none.
    """
    counts = Counter(gram for ids in completions for gram in ngrams(ids, n))
    total = sum(counts.values())
    return len(counts) / total if total else 1.0


def repetition(ids_T: Sequence[int] | np.ndarray[Any, Any], n: int = 4) -> float:
    """Share of a completion's n-grams that it said before (Welleck et al. 2019, rep-n).

    0 when it has none.
    """
    grams = ngrams(ids_T, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def policy_mismatch(row: Mapping[str, float]) -> str:
    """What a step's metrics say against learner and sampler being one policy; empty if nothing.

    A stale token was drawn from another policy, so only steps without any tell.

    Args:
        row: by the keys of `metrics.KEYS`.
    """
    if row["staleness_max"] > 0 or not row.get("mismatch_kl", 0.0) > MISMATCH:
        return ""
    return (
        f"the sampler draws from another policy than the trainer's: mismatch_kl is over {MISMATCH} "
        "without a stale token; compare their dtypes and the sampler's version"
    )


def rounded_for_sampler(learner: str, sampler: str) -> str:
    """A warning of weights that lose digits on their way to the sampler; empty if they do not."""
    if learner != "float32" or sampler == "float32":
        return ""
    return (
        f"the sampler computes in {sampler} and the trainer in float32: updates too small for "
        f"{sampler} reach the trainer's policy alone. Give --dtype bfloat16 here, or --dtype "
        "float32 to the sampler"
    )


def warn(history: Sequence[Evaluation]) -> list[str]:
    """What the newest evaluation shows, against the earlier ones; each one plain sentence.

    Args:
        history: evaluations of the same prompts, oldest first.
    """
    if len(history) < 2:
        return []
    first, now = history[0], history[-1]
    found = (_overoptimised(history), _longer(first, now), _dull(first, now))
    return [f"step {now.step}: {text}" for text in found if text]


def overoptimised(proxy: Estimate, heldout: Estimate) -> bool:
    """Whether the reward rose and the held-out reward fell, both beyond their noise.

    Args:
        proxy: difference of the reward that is optimised, after − before.
        heldout: difference of the reward that is never trained on.
    """
    return proxy.rose and heldout.fell


def _overoptimised(history: Sequence[Evaluation]) -> str:
    """Proxy up and held-out reward down, beyond noise, since any earlier evaluation.

    Each of them is a test of its own, so the level is divided among them (Bonferroni).
    """
    *earlier, now = history
    level = 1 - 0.05 / len(earlier)
    for then in earlier:
        if "heldout_reward" not in then.prompts or "heldout_reward" not in now.prompts:
            continue
        proxy = paired(then.prompts["reward"], now.prompts["reward"], level)
        heldout = paired(then.prompts["heldout_reward"], now.prompts["heldout_reward"], level)
        if overoptimised(proxy, heldout):
            return (
                f"since step {then.step} the reward rose by {proxy.mean:.3g} while the held-out "
                f"reward fell by {-heldout.mean:.3g}, both beyond their noise: the policy may be "
                "gaming its reward"
            )
    return ""


def _longer(first: Evaluation, now: Evaluation) -> str:
    was, grown = first.estimates["length"].mean, _since(first, now, "length")
    if grown.rose and was and was + grown.mean > LONGER * was:
        return f"completions grew from {was:.0f} to {was + grown.mean:.0f} tokens"
    return ""


def _dull(first: Evaluation, now: Evaluation) -> str:
    repeated = _since(first, now, "repetition")
    if repeated.rose and repeated.mean > REPEATED:
        return f"the share of repeated 4-grams rose by {repeated.mean:.2f}"
    if now.distinct_2 < DISTINCT * first.distinct_2:
        return f"distinct-2 fell from {first.distinct_2:.2f} to {now.distinct_2:.2f}"
    return ""


def _since(first: Evaluation, now: Evaluation, name: str) -> Any:
    return paired(first.prompts[name], now.prompts[name])
