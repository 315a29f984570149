"""Whether one model is right more often than another on the same comparisons. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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


def paired_test(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], prompts: npt.NDArray[np.int64]
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


def _two_sided(sums: npt.NDArray[np.int64]) -> float:
    """Chance that Σ ±|s| is at least as far from 0 as Σ s, each sign as likely as the other."""
    reach = int(np.abs(sums).sum())
    chance = np.zeros(2 * reach + 1)  # of each total from -reach to reach
    chance[reach] = 1.0
    for step in np.abs(sums):
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    totals = np.arange(-reach, reach + 1)
    return float(min(1.0, chance[np.abs(totals) >= abs(sums.sum())].sum()))
