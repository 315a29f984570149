"""What the scores of comparisons say of a model. Pure functions.

A comparison is right when every chosen answer scores above every rejected one; a tie is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.trainer.common.data.same_prompts import prompt_numbers
from guerdon.trainer.common.measuring.measures import (
    Floats,
    Ints,
    accuracy,
    calibration,
    length_bias,
    pearson,
    proportion,
    ranks,
)
from guerdon.trainer.evaluate.comparison_scores import ComparisonScores
from guerdon.trainer.evaluate.comparisons import Comparison
from guerdon.trainer.evaluate.ties import ties_score

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": (
        "alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut", "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse",
        "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": (
        "math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust",
    ),
}  # fmt: skip
"""RewardBench's (Lambert et al. 2024, arXiv:2403.13787, table 1): within a section subsets weigh
as they have pairs, but `math-prm` as much as all code together."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A difference of two shares of the same rows, and its p-value."""

    difference: float
    """Share that the first is right, less that of the second."""
    first_only: int
    """Rows where only the first is right."""
    second_only: int
    p: float
    """Two-sided, of the exact sign-flip test by prompt."""
    prompts: int


def findings(comparisons: Sequence[Comparison], given: ComparisonScores) -> dict[str, Any]:
    """All that is said of one model.

    Args:
        comparisons: as they were scored.
        given: their scores.
    """
    scored = [i for i, found in enumerate(given.scores) if found is not None]
    delta = margins(given, scored)
    prompts = prompt_numbers(comparisons[i] for i in scored)
    subsets: dict[str, list[int]] = {}
    for at, i in enumerate(scored):
        subsets.setdefault(comparisons[i].subset, []).append(at)
    parts = {name: asdict(accuracy(delta[at], prompts[at])) for name, at in sorted(subsets.items())}
    found: dict[str, Any] = {
        "model": given.model,
        "revision": given.revision,
        "comparisons": len(scored),
        "refused": len(given.refused),
        "accuracy": asdict(accuracy(delta, prompts)),
        "ties": int((delta == 0).sum()),
        "same_tokens": given.same_tokens,
        "dropped_text": given.dropped,
        "mean_margin": float(delta.mean()),
        "score_std": float(np.concatenate([np.concatenate(_both(given, i)) for i in scored]).std()),
        "subsets": parts if set(parts) != {""} else {},
        "sections": sections(parts),
        "rewardbench2_ties": _ties(comparisons, given, scored),
        "seconds": round(given.seconds, 3),
        "comparisons_per_second": len(scored) / given.seconds,
        "tokens_per_second": given.computed / given.seconds,
    }
    pairs = [i for i in scored if comparisons[i].is_pair]
    if pairs:
        found["calibration"] = asdict(calibration(margins(given, pairs)))
        of_pairs = prompt_numbers(comparisons[i] for i in pairs)
        found["length_bias"] = _length_bias(given, pairs, of_pairs)
    return found


def _ties(
    comparisons: Sequence[Comparison], given: ComparisonScores, places: Sequence[int]
) -> dict[str, Any] | None:
    """RewardBench 2's own score of its subset Ties, where there is one."""
    here = [i for i in places if comparisons[i].subset.lower() == "ties"]
    found = ties_score((comparisons[i].id, *_both(given, i)) for i in here)
    return None if found is None else asdict(found)


def margins(given: ComparisonScores, places: Sequence[int]) -> Floats:
    """The difference of the least chosen answer's score and the best rejected one's."""
    both = [_both(given, i) for i in places]
    return np.array([float(chosen.min() - rejected.max()) for chosen, rejected in both])


def sections(subsets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """RewardBench's sections and their mean, where the subsets are its own; else nothing."""
    known = {name for names in SECTIONS.values() for name in names}
    if not subsets or not set(subsets) <= known:
        return {}
    code = sum(part["n"] for name, part in subsets.items() if name.startswith("hep-"))
    found = {}
    for section, names in SECTIONS.items():
        here = {name: subsets[name] for name in names if name in subsets}
        if not here:
            continue
        weights = {name: part["n"] for name, part in here.items()}
        if code and "math-prm" in weights:
            weights["math-prm"] = code
        total = sum(weights.values())
        found[section] = sum(w * here[name]["value"] for name, w in weights.items()) / total
    if len(found) == len(SECTIONS):
        found["mean"] = sum(found.values()) / len(found)
    return found


def agreement(
    comparisons: Sequence[Comparison], one: ComparisonScores, other: ComparisonScores
) -> dict[str, Any]:
    """Which of two models is right more often, and how far they order the same answers alike.

    Over what both have scored.
    """
    places = [
        i
        for i, (a, b) in enumerate(zip(one.scores, other.scores, strict=True))
        if a is not None and b is not None
    ]
    first, second = margins(one, places), margins(other, places)
    alike = np.sign(first) == np.sign(second)
    prompts = prompt_numbers(comparisons[i] for i in places)
    test = paired_test(first > 0, second > 0, prompts)
    return {
        "comparisons": len(places),
        "accuracy": asdict(test),
        "same_order": asdict(proportion(alike.astype(np.float64), prompts)),
        "margin_rank_correlation": pearson(ranks(first), ranks(second)),
        "largest_difference": float(
            max(
                np.abs(np.concatenate(_both(one, i)) - np.concatenate(_both(other, i))).max()
                for i in places
            )
        ),
    }


def paired_test(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], prompts: Ints
) -> PairedTest:
    """The exact sign-flip (paired permutation) test of two models' right answers.

    If both models were as good, then the two could be exchanged on any prompt. Rows of one prompt
    are exchanged together, since they are not independent. The chance of each sum of differences
    is computed, not drawn; with a row for each prompt this is McNemar's exact test.

    Args:
        first: whether the first model is right; shape [N].
        second: the same of the second model.
        prompts: of each row, equal where rows share a prompt.
    """
    difference = first.astype(np.int64) - second
    _, place = np.unique(prompts, return_inverse=True)
    sums = np.bincount(place, difference).astype(np.int64)
    return PairedTest(
        float(difference.mean()),
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        _two_sided(sums[sums != 0]),
        len(sums),
    )


def _two_sided(sums: Ints) -> float:
    """Chance that Σ ±|s| is at least as far from 0 as Σ s, each sign as likely as the other."""
    reach = int(np.abs(sums).sum())
    chance = np.zeros(2 * reach + 1)  # of each total from -reach to reach
    chance[reach] = 1.0
    for step in np.abs(sums):
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    totals = np.arange(-reach, reach + 1)
    return float(min(1.0, chance[np.abs(totals) >= abs(sums.sum())].sum()))


def _both(given: ComparisonScores, place: int) -> tuple[Floats, Floats]:
    found = given.scores[place]
    assert found is not None
    return found


def _length_bias(given: ComparisonScores, places: Sequence[int], prompts: Ints) -> dict[str, Any]:
    """Length bias by the tokens that the model saw: within a pair the prompt's cancel out."""
    tokens = [given.tokens[i] for i in places]
    sides = (0, 1)
    lengths = [np.array([float(pair[i][0]) for pair in tokens if pair is not None]) for i in sides]
    scores = [np.array([float(_both(given, place)[i][0]) for place in places]) for i in sides]
    found = asdict(length_bias(scores[0], scores[1], lengths[0], lengths[1], prompts))
    found.pop("correlation")  # of whole sequences: it would be the prompts' as well
    return found
