"""RewardBench 2's score of its subset Ties (Malik et al. 2025, arXiv:2506.01937). Pure.

A prompt there has several answers that are equally right, and some that are wrong. A model should
score every right one above every wrong one, and the right ones about alike. Each such row
(`id` "tied:7") has a reference row with a single right answer ("ref:7"). The score is that of
upstream's `process_single_model`:

    0.3 accuracy of tied rows + 0.3 accuracy of reference rows
    + 0.2 share of pairs of rows whose tied row's margin is larger than its spread
    + 0.2 the same, with the smaller of the tied and the reference row's margins
    + 0.01 mean of tanh(smaller margin / spread − 1)

where margin = worst right − best wrong answer, and spread = best − worst right answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from guerdon.trainer.common.measuring.measures import Floats

_ID = re.compile(r"(ref|tied):(\d+)")


@dataclass(frozen=True, slots=True)
class TiesScore:
    """The score and its terms; each term but `gap` is a share."""

    score: float
    tied_accuracy: float
    """Tied rows in which every right answer scores above every wrong one."""
    reference_accuracy: float
    """Accuracy on reference rows."""
    margin_over_spread: float
    """Prompts whose tied row's margin is larger than its spread."""
    both_margins_over_spread: float
    """Prompts where the reference row's margin is larger than that spread, too."""
    gap: float
    """Mean of tanh(smaller margin / spread − 1); 0 where that is 0 / 0."""
    prompts: int
    """Prompts with a tied and a reference row."""


def ties_score(rows: Iterable[tuple[str, Floats, Floats]]) -> TiesScore | None:
    """The score of the subset; None where no prompt has both of its rows.

    Args:
        rows: `id`, scores of the right answers, scores of the wrong ones. Other ids than
            "ref:N" and "tied:N" are left out.
    """
    margins: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spreads: dict[str, float] = {}
    for name, right, wrong in rows:
        if (match := _ID.fullmatch(name)) is None:
            continue
        kind, prompt = match.groups()
        margins[kind][prompt] = float(right.min() - wrong.max())
        if kind == "tied":
            spreads[prompt] = float(right.max() - right.min())
    prompts = sorted(margins["ref"].keys() & margins["tied"].keys())
    if not prompts:
        return None
    spread = np.array([spreads[prompt] for prompt in prompts])
    tied, reference = (
        np.array([margins[kind][prompt] for prompt in prompts]) for kind in ("tied", "ref")
    )
    smaller = np.minimum(tied, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    found = {
        "tied_accuracy": _positive(margins["tied"]),
        "reference_accuracy": _positive(margins["ref"]),
        "margin_over_spread": float((tied > spread).mean()),
        "both_margins_over_spread": float((smaller > spread).mean()),
        "gap": float(gap.mean()),
    }
    weights = (0.3, 0.3, 0.2, 0.2, 0.01)
    score = sum(weight * term for weight, term in zip(weights, found.values(), strict=True))
    return TiesScore(score, **found, prompts=len(prompts))


def _positive(values: dict[str, float]) -> float:
    return sum(value > 0 for value in values.values()) / len(values)
