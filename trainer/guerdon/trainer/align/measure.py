"""What the policy makes of what is held out: likelihoods, and the rewards that they imply.

The reward that a policy implies against its reference is β·(log π(y|x) − log π_ref(y|x)), up to a
term of the prompt (Rafailov et al. 2023, arXiv:2305.18290, eq. 5): of a pair's two answers it says
which is better. ORPO has no reference and compares odds, so mean log-probabilities; both are
measured for every recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from guerdon.trainer.align.inputs import PairTokens
from guerdon.trainer.completions import Completion, response_logprobs
from guerdon.trainer.measures import Floats, Proportion, accuracy, calibration


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of answers, in the order of the rows: sums of log-probabilities in nats, float64."""

    sums: Floats
    tokens: Floats

    @property
    def means(self) -> Floats:
        """By the token."""
        found: Floats = self.sums / self.tokens
        return found

    @property
    def nll(self) -> float:
        """Negative log-likelihood by the token, over all tokens."""
        return float(-self.sums.sum() / self.tokens.sum())


def likelihoods(model: Any, completions: Sequence[Completion], dtype: str) -> Likelihoods:
    """Of the answers; the model is left in the mode that it was in."""
    training = model.training
    found = response_logprobs(model, completions, dtype=dtype)
    model.train(training)
    return Likelihoods(
        np.array([row.astype(np.float64).sum() for row in found]),
        np.array([float(len(row)) for row in found]),
    )


@dataclass(frozen=True, slots=True)
class PairLikelihoods:
    """Of both answers of each pair."""

    chosen: Likelihoods
    rejected: Likelihoods

    def rewards(self, reference: PairLikelihoods, beta: float) -> tuple[Floats, Floats]:
        """β·(log π − log π_ref) of the chosen and of the rejected answers."""
        return (
            beta * (self.chosen.sums - reference.chosen.sums),
            beta * (self.rejected.sums - reference.rejected.sums),
        )


def pair_likelihoods(model: Any, rows: Sequence[PairTokens], dtype: str) -> PairLikelihoods:
    """Of both answers of each pair."""
    return PairLikelihoods(
        likelihoods(model, [(row.prompt, row.chosen) for row in rows], dtype),
        likelihoods(model, [(row.prompt, row.rejected) for row in rows], dtype),
    )


def pair_measures(now: PairLikelihoods, reference: PairLikelihoods, beta: float) -> dict[str, Any]:
    """What summary.json says of held-out pairs.

    Args:
        now: by the policy.
        reference: by the policy that training began from.
        beta: scales implied rewards; the accuracy does not depend on it.
    """
    chosen, rejected = now.rewards(reference, beta)
    delta = chosen - rejected
    return {
        "implicit_accuracy": _share(accuracy(delta)),
        "margin": float(delta.mean()),
        "ties": int((delta == 0).sum()),
        "calibration": asdict(calibration(delta)),
        "likelihood_accuracy": _share(accuracy(now.chosen.sums - now.rejected.sums)),
        "mean_likelihood_accuracy": _share(accuracy(now.chosen.means - now.rejected.means)),
        "chosen_shift": float((now.chosen.sums - reference.chosen.sums).mean()),
        "rejected_shift": float((now.rejected.sums - reference.rejected.sums).mean()),
        "chosen_nll": now.chosen.nll,
    }


def sft_measures(now: Likelihoods) -> dict[str, Any]:
    """What summary.json says of held-out answers."""
    return {
        "nll": now.nll,
        "perplexity": float(np.exp(now.nll)),
        "answer_nll_se": float((-now.means).std(ddof=1) / len(now.means) ** 0.5)
        if len(now.means) > 1
        else None,
    }


def _share(found: Proportion) -> dict[str, Any]:
    return asdict(found)
